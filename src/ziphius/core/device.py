"""Where a model computes and in which numbers: the words of the options become torch's objects."""

import torch

from ziphius.core.errors import DeviceError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, ... into a device that this machine has.

    `auto` is the accelerator that torch sees, else the CPU.
    """
    available = available_devices()
    if name == "auto":
        _, *accelerators = available
        return torch.device(accelerators[0] if accelerators else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(_unknown_device(name, available)) from error
    if str(device) not in available and name not in {entry.split(":")[0] for entry in available}:
        raise DeviceError(_unknown_device(name, available))
    return device


def available_devices() -> list[str]:
    """List the CPU and then every accelerator, under the names that `resolve_device` takes."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    count = torch.accelerator.device_count()
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(count))]


def resolve_dtype(
    name: str, device: torch.device, stored: torch.dtype = torch.float32
) -> torch.dtype:
    """Turn an option's word into a dtype; `auto` is what is fast and loses nothing on a CPU.

    That is bfloat16 on accelerators; on a CPU it is bfloat16 where the weights are stored so and
    the CPU multiplies it, else float32: without units for it half-precision products are many
    times slower, not faster.

    Args:
        name: auto, float32, bfloat16 or float16.
        device: where products are taken.
        stored: narrowest dtype that holds the weights exactly; float32 for new ones.
    """
    if name == "auto":
        is_fast = device.type != "cpu" or (stored == torch.bfloat16 and multiplies_bfloat16())
        return torch.bfloat16 if is_fast else torch.float32
    if name not in DTYPES:
        raise DeviceError(f"Unknown dtype {name!r}. Known: auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Bring a tensor of the CPU to a device without waiting for what the device is still doing.

    CUDA copies such memory aside before the call returns, so the caller may change it at once.
    """
    return x.to(device, non_blocking=x.device.type == "cpu" and device.type == "cuda")


def multiplies_bfloat16() -> bool:
    """Tell whether this machine's CPU has units for bfloat16 products: AMX, or AVX512-BF16."""
    has_amx: bool = torch.cpu._is_amx_tile_supported()
    has_avx: bool = torch.cpu._is_avx512_bf16_supported()
    return has_amx or has_avx


def float64_device(device: torch.device) -> torch.device:
    """Return where float64 is computed for a device: there, or on the CPU if it may have none.

    Apple's GPUs have none and raise on the attempt; of the accelerators only CUDA is known to.
    """
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def with_float64(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor where float64 can be computed from it: where it is, or on the CPU."""
    return x if float64_device(x.device) == x.device else x.cpu()


def _unknown_device(name: str, available: list[str]) -> str:
    return f"No device {name!r} here. This machine has: auto, {', '.join(available)}."
