import tomllib
from typing import Any

import pytest

from fl_app.config import PROJECT_VARIABLE, ConfigError, RunConfig, project_path
from fl_app.data import datasets
from tests.conftest import Configure, default_options, make_config


def test_auto_takes_the_recipe_of_the_data_set(configure: Configure) -> None:
    for name, spec in datasets.DATASETS.items():
        config = configure(dataset=name)
        assert config.model == spec.recipe.model
        assert config.num_server_rounds == spec.recipe.num_server_rounds
        assert config.learning_rate == spec.recipe.learning_rate
        assert config.augment == spec.recipe.augment


def test_zero_is_auto_where_it_has_no_meaning(configure: Configure) -> None:
    config = configure(num_server_rounds=0, batch_size=0, learning_rate=0)
    assert config == configure()


def test_false_is_not_auto(configure: Configure) -> None:
    assert configure(dataset="mnist").augment is True
    assert configure(dataset="mnist", augment=False).augment is False


def test_the_clients_that_train_validate_by_default(configure: Configure) -> None:
    assert configure(fraction_train=0.3).fraction_evaluate == 0.3
    assert configure(fraction_train=0.3, fraction_evaluate=0.0).fraction_evaluate == 0.0


def test_adam_has_a_learning_rate_of_its_own(configure: Configure) -> None:
    assert configure(optimizer="adam").learning_rate == 0.001
    assert configure(optimizer="adam", learning_rate=0.5).learning_rate == 0.5


def test_given_values_win_over_the_recipe(configure: Configure) -> None:
    config = configure(model="mlp", local_epochs=7)
    assert (config.model, config.local_epochs) == ("mlp", 7)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("proximal-mu", -1.0, "greater than or equal to 0"),
        ("proximal-mu", float("nan"), "finite number"),
        ("fraction-train", 0.0, "greater than 0"),
        ("fraction-train", 1.5, "less than or equal to 1"),
        ("fraction-evaluate", -0.1, "greater than or equal to 0"),
        ("dirichlet-alpha", 0.0, "greater than 0"),
        ("num-clients", -1, "greater than or equal to 0"),
        ("num-clients", 2.5, "valid integer, at least 0"),
        ("num-server-rounds", -3, "greater than or equal to 1"),
        ("batch-size", "many", "valid integer, at least 1"),
        ("momentum", "high", "valid number, at least 0 and below 1"),
        ("momentum", 2.0, "(allowed: at least 0 and below 1)"),
        ("optimizer", "lion", "'sgd' or 'adam'"),
        ("partitioner", "random", "'iid'"),
        ("strategy", "fedmagic", "there are: fedadam, fedavg, "),
        ("model", "gpt", "there are: cnn"),
        ("learning-rate", -0.1, "greater than 0"),
        ("momentum", 1.0, "less than 1"),
        ("seed", True, "valid integer"),
        ("augment", "yes", "valid boolean, true or false"),
        ("num-server-rounds", False, "valid integer"),
        ("run-name", "../elsewhere", "letters, digits, dots"),
        ("validation-fraction", 1.0, "less than 1"),
        ("round-timeout", 0.0, "greater than 0"),
        ("clients-together", 1025, "less than or equal to 1024"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    option: str, value: Any, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_options(default_options() | {option: value}, datasets.recipe_for)
    message = str(caught.value)
    assert option in message
    assert repr(value) in message
    assert said in message
    assert "\n" not in message


def test_feedback_needs_a_codec_that_leaves_something_out() -> None:
    with pytest.raises(ConfigError, match="error-feedback = true needs a compression"):
        make_config(error_feedback=True)
    assert make_config(error_feedback=True, compression="int8").error_feedback


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match="option epochs is unknown"):
        RunConfig.from_options(default_options() | {"epochs": 3}, datasets.recipe_for)


def test_a_missing_option_is_named() -> None:
    options = default_options()
    del options["seed"]
    with pytest.raises(ConfigError, match="option seed is missing"):
        RunConfig.from_options(options, datasets.recipe_for)


def test_a_strategy_gets_its_own_table_only() -> None:
    options = default_options() | {"fedavg.beta": 0.5, "fedprox.gamma": 1}
    config = RunConfig.from_options(options, datasets.recipe_for)
    assert config.strategy_options == {"beta": 0.5}


def test_a_run_in_short_is_what_auto_became(configure: Configure) -> None:
    config = configure(dataset="mnist")
    said = config.in_short()
    assert said.startswith('dataset="mnist" num-clients=10 partitioner="dirichlet" ')
    given = tomllib.loads(said.replace(" ", "\n"))
    assert given["learning-rate"] == config.learning_rate
    again = {name.replace("-", "_"): value for name, value in given.items()}
    assert configure(**again) == config


def test_options_round_trip(configure: Configure) -> None:
    config = configure(dataset="mnist", seed=5)
    options = {k: v for k, v in config.options().items() if k != "strategy-options"}
    assert RunConfig.from_options(options, datasets.recipe_for) == config


def test_a_relative_path_is_the_projects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROJECT_VARIABLE, "/somewhere")
    assert str(project_path("results", "results-dir")) == "/somewhere/results"
    assert str(project_path("/else/where", "results-dir")) == "/else/where"


def test_a_relative_path_without_a_project_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(PROJECT_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="results-dir = 'results' is relative"):
        project_path("results", "results-dir")
