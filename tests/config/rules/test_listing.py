import inspect
from importlib import import_module
from pkgutil import iter_modules

from hunyuan_train.config import rules
from hunyuan_train.config.rules import listing
from hunyuan_train.config.rules.listing import RULES, Needs, check_run
from hunyuan_train.families.hunyuan_v1_moe import A13B
from hunyuan_train.shipped import RECIPES
from tests.config.resolved import EIGHT_GPUS, resolve_flags, unchecked


def test_the_defaults_and_the_recipes_break_no_rule():
    resolve_flags("")
    for recipe in RECIPES.glob("*.yaml"):
        resolve_flags(["--recipe", str(recipe)], EIGHT_GPUS, shape=A13B)


def test_every_rule_is_in_the_list():
    modules = [
        import_module(f"{rules.__name__}.{one.name}") for one in iter_modules(rules.__path__)
    ]
    written = {
        function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("check_") and list(inspect.signature(function).parameters) == ["run"]
    }
    assert written == set(RULES)


def test_rules_that_look_at_what_is_not_known_are_left_out(monkeypatch):
    seen = []
    rules_that_tell = {(lambda run, one=needs: seen.append(one)): needs for needs in Needs}
    monkeypatch.setattr(listing, "RULES", rules_that_tell)
    check_run(unchecked(1), [Needs.SETTINGS, Needs.DISK])
    assert seen == [Needs.SETTINGS, Needs.DISK]
