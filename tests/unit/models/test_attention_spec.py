import pytest

from tests.tiny import grouped_config, latent_config
from ziphius.models.attention import ATTENTION
from ziphius.models.attention_spec import SPECS, attention_spec, cache_specs
from ziphius.models.presets import get_preset


def test_every_attention_has_a_spec_whose_forms_it_has():
    assert SPECS.keys() == ATTENTION.keys()
    for config in (latent_config(), grouped_config()):
        attention = ATTENTION[config.attention](config, 0)
        assert attention.spec == attention_spec(config, 0)
        assert all(callable(getattr(attention, form.name)) for form in attention.spec.forms)


def test_the_mtp_layers_have_a_cache_too():
    assert len(cache_specs(latent_config(num_nextn_predict_layers=2))) == 4


def test_products_of_the_forms_are_those_of_the_formulas():
    # C = 12, P = 10, R = 6, V = 9, three heads
    expanded, absorbed = attention_spec(latent_config(), 0).forms
    queries, keys = 5, 11
    assert expanded.cost(queries, keys) == 3 * (12 * 19 * keys + queries * keys * (16 + 9))
    assert absorbed.cost(queries, keys) == 3 * (12 * 19 * queries + queries * keys * (18 + 12))
    [grouped] = attention_spec(grouped_config(), 0).forms
    assert grouped.cost(queries, keys) == queries * keys * 6 * (8 + 8)


@pytest.mark.parametrize(
    ("queries", "keys", "name"),
    [(1, 4_096, "absorbed"), (64, 4_096, "absorbed"), (512, 4_096, "expanded"), (1, 1, "expanded")],
)
def test_few_queries_behind_many_keys_are_absorbed(queries, keys, name):
    assert attention_spec(get_preset("v3"), 0).cheapest(queries, keys).name == name
