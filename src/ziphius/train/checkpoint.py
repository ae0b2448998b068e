"""The checkpoints of a run folder: written behind the training, whole or not at all, checked.

Saving: the state is copied between two steps; a thread writes the copy into a folder with a
temporary name, the manifest last, brings everything to the disk and renames it to `step-N`. Then
all but the last few and the best one go. Going on: the newest folder that holds exactly what its
manifest says is taken, and every newer one that does not is told of.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ziphius.core.device import resolve_device
from ziphius.core.errors import OutputError
from ziphius.core.files import beside, new_folder, sync_folder
from ziphius.dist.world import ALONE, World, local_device
from ziphius.models.weights import SavesFiles
from ziphius.train import state as states
from ziphius.train.budget import parse_budget
from ziphius.train.config import TrainConfig
from ziphius.train.errors import TrainingError
from ziphius.train.fingerprint import Fingerprint, differences, fingerprint, frozen_sum
from ziphius.train.lock import locked
from ziphius.train.manifest import DamagedError, check_folder, read_manifest, write_manifest
from ziphius.train.plan import planned_steps, refuse_spent
from ziphius.train.rng import DrawWatch
from ziphius.train.seams import TrainState
from ziphius.train.state import Snapshot

CHECKPOINTS = "checkpoints"
_PREFIX, _TRASH, _UNFINISHED = "step-", ".trash-", ".tmp"


@dataclass(frozen=True)
class _Written:
    """What the writing thread leaves."""

    checkpoint: Path
    problem: str | None
    """With the removal of old ones."""


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr)


class CheckpointStore:
    """Keep the checkpoints of one run; a `Store` for the loop.

    Every rank has one; the first alone locks, writes and warns.

    Args:
        folder: of the run; checkpoints are in `checkpoints/step-N`.
        config: of the run; `keep_last` newest checkpoints are kept, and the one of the best loss on
            held-out text.
        tokenizer: writes itself into every checkpoint, so that each is a model to be used.
        base: what adapters are trained on; their checkpoints name it.
        world: the ranks of the run.
        require_exact: refuse to go on where the numbers would not be those of a run that never
            stopped.
        warn: shows what the user should know; called on the thread that calls the store. By default
            standard error.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        *,
        tokenizer: SavesFiles | None = None,
        base: Path | None = None,
        world: World = ALONE,
        require_exact: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.run_folder, self.folder = folder, folder / CHECKPOINTS
        self.config, self.tokenizer, self.base, self.world = config, tokenizer, base, world
        self.require_exact, self.warn = require_exact, warn or _to_stderr
        self._draws: DrawWatch | None = None
        self._pool = ThreadPoolExecutor(1, "ziphius-checkpoint")
        self._writing: Future[_Written] | None = None
        self._frozen: str | None = None
        self._told: set[str] = set()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of the folder, and remove what killed ones left half-done.

        A checkpoint that is still being written at the end of the block is waited for.
        """
        with locked(self.run_folder):
            if self.folder.is_dir():
                for path in self.folder.iterdir():
                    if path.name.startswith(_TRASH) or path.name.endswith(_UNFINISHED):
                        shutil.rmtree(path)
            try:
                yield
            finally:
                # Normally there is nothing left; after an error whoever shows warnings may be gone.
                self.warn = _to_stderr
                self._report(self._settle())

    def latest(self, *, tells: bool = True) -> Path | None:
        """Return the newest checkpoint whose files are what its manifest says.

        Args:
            tells: warn, once, of newer ones that are damaged.

        Raises:
            TrainingError: there are checkpoints, and not one of them is whole.
        """
        self._watch()
        self._report(self._settle())
        damaged: list[str] = []
        for path in sorted(self._checkpoints(), key=_step_of, reverse=True):
            try:
                check_folder(path)
            except DamagedError as error:
                # The first rank may take an old one away while another one looks.
                if path.exists():
                    damaged.append(f"{path.name}: {error}")
                continue
            if tells:
                self._tell(damaged, path)
            return path
        if damaged:
            raise TrainingError(
                f"No checkpoint in {self.folder} is whole ({'; '.join(damaged)}). Nothing was "
                "changed. Bring the files back from a copy, or choose another folder to start anew."
            )
        return None

    def refuse_spent(self, checkpoint: Path) -> None:
        """Refuse a budget that the run of a checkpoint has spent already; nothing is changed.

        Raises:
            TrainingError: it has.
        """
        done, budget = states.read_progress(checkpoint), parse_budget(self.config.budget)
        total = planned_steps(budget, self.config.batch_sizes, self.config.seq_len)
        if total is None and done["plan"].get("budget") == self.config.budget:
            total = done["plan"]["total_steps"]
        refuse_spent(
            self.run_folder,
            self.config,
            step=done["step"],
            seconds=done["seconds"],
            total_steps=total,
        )

    def restore(self, state: TrainState, checkpoint: Path) -> str:
        """Fill a state of the same shape; return `yes` if the run goes on exactly, or why not.

        Raises:
            TrainingError: the checkpoint is of another model or optimizer, or the run would not go
                on exactly and must.
        """
        stored = states.read(checkpoint)
        notes = stored.notes
        reasons = differences(notes["fingerprint"], self._fingerprint(state))
        plan = stored.items["progress"].values["plan"]
        if plan.get("budget") != state.plan.get("budget"):
            budgets = f"{plan.get('budget')!r} and is {state.plan.get('budget')!r}"
            reasons.append(f"budget was {budgets}")
        elif plan.get("planned_s") is not None:
            reasons.append("the length of a run with a budget of time follows the clock")
        if not self.config.deterministic:
            reasons.append("deterministic is off")
        if self.world.size > 1 and notes["random_numbers_drawn"]:
            reasons.append(
                "random numbers were drawn, and only the first process's generators are kept"
            )
        if reasons and self.require_exact:
            raise TrainingError(
                f"{checkpoint}: the run would not go on exactly, because {'; '.join(reasons)}."
            )
        states.restore(state, stored)
        self._watch().go_on(notes["random_numbers_drawn"])
        return f"no because {'; '.join(reasons)}" if reasons else "yes"

    def save_async(self, state: TrainState) -> None:
        """Copy the state now and write it in the background, one at a time.

        Where the one before could not be written (no space, a failing disk) the user is warned, and
        the training goes on: this one is the next attempt.
        """
        self._report(self._settle())
        notes = {
            "fingerprint": self._fingerprint(state),
            "random_numbers_drawn": self._watch().has_drawn(),
        }
        self._writing = self._pool.submit(self._write, states.capture(state, notes, self.base))

    def wait(self) -> Path:
        """Wait for the last checkpoint and return its folder.

        Raises:
            OutputError: it could not be written.
        """
        if (error := self._settle()) is not None:
            kept = ", ".join(path.name for path in sorted(self._checkpoints(), key=_step_of))
            raise OutputError(
                f"The last checkpoint could not be written: {error} "
                f"What {self.folder} has: {kept or 'none'}. Make room, then start the same command "
                "again."
            ) from error
        newest = self.latest()
        assert newest is not None, "nothing was saved"
        return newest

    def _tell(self, damaged: list[str], taken: Path) -> None:
        """Warn once of each checkpoint that was passed over."""
        for note in damaged:
            if self.world.is_first and note not in self._told:
                self._told.add(note)
                self.warn(f"Ignored a damaged checkpoint, {note}. Going on from {taken.name}.")

    def _watch(self) -> DrawWatch:
        """Watch the random generators from the loop's first question on, when they are seeded."""
        if self._draws is None:
            self._draws = DrawWatch(local_device(resolve_device(self.config.device)))
        return self._draws

    def _fingerprint(self, state: TrainState) -> Fingerprint:
        if self._frozen is None:
            self._frozen = frozen_sum(state.model)  # once: they do not change
        return fingerprint(state, self.config, self.world, self._frozen)

    def _settle(self) -> Exception | None:
        """Wait for the writing thread; return what kept it from writing, and raise the rest."""
        if self._writing is None:
            return None
        writing, self._writing = self._writing, None
        try:
            written = writing.result()
        except (OSError, OutputError) as error:
            return error
        if written.problem is not None:
            self.warn(written.problem)
        return None

    def _report(self, error: Exception | None) -> None:
        if error is not None:
            self.warn(
                f"A checkpoint could not be written: {error} The training goes on; the next one is "
                "the next attempt."
            )

    def _write(self, snapshot: Snapshot) -> _Written:
        """Write a snapshot and remove what is no longer kept; runs in the thread."""
        target = self.folder / f"{_PREFIX}{snapshot.step}"
        if target.exists() and not self._is_whole(target):
            _discard(target)
        if not target.exists():
            with new_folder(target) as unfinished:
                states.write(snapshot, unfinished, self.tokenizer)
                loss = snapshot.validation_loss
                write_manifest(unfinished, step=snapshot.step, validation_loss=loss)
        return _Written(target, self._prune(snapshot.step))

    def _prune(self, step: int) -> str | None:
        """Remove all checkpoints but the last and the best; return what went wrong.

        Those past `step` are damaged, as this start began before them: they neither count nor go.
        """
        try:
            losses = {
                path: read_manifest(path).validation_loss
                for path in self._readable()
                if _step_of(path) <= step
            }
            kept = set(sorted(losses, key=_step_of)[-self.config.keep_last :])
            measured = {path: loss for path, loss in losses.items() if loss is not None}
            if measured:
                # Of several with one measurement the first is closest to it.
                kept.add(min(measured, key=lambda path: (measured[path], _step_of(path))))
            for path in losses.keys() - kept:
                _discard(path)
        except OSError as error:
            return f"Old checkpoints could not be removed from {self.folder}: {error}."
        return None

    def _checkpoints(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [
            path
            for path in self.folder.iterdir()
            if path.name.startswith(_PREFIX) and path.name.removeprefix(_PREFIX).isdecimal()
        ]

    def _readable(self) -> Iterator[Path]:
        """List the checkpoints with a sound manifest; the others are left to the user."""
        for path in self._checkpoints():
            try:
                read_manifest(path)
            except DamagedError:
                continue
            yield path

    def _is_whole(self, path: Path) -> bool:
        try:
            check_folder(path)
        except DamagedError:
            return False
        return True


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _discard(path: Path) -> None:
    """Take a folder away under its name in one step, then remove it."""
    trash = path.with_name(f"{_TRASH}{beside(path).name}")
    os.rename(path, trash)
    sync_folder(path.parent)
    shutil.rmtree(trash)
