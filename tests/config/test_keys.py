"""What each key of the config may do is said at its field, and read from there by everyone."""

import pytest

from cadence.config import schema
from cadence.config.keys import conditions, is_marked, keys, marked


@pytest.mark.parametrize(
    ("key", "may_change"),
    [
        *[("trainer.step_size", True), ("trainer.max_epochs", True), ("trainer.max_skipped", True)],
        *[("track.uri", True), ("sweep", True), ("sweep.repeats", True), ("resume", True)],
        *[("distributed.processes", True), ("device.threads", True), ("data.workers", True)],
        *[("data.batch_size", False), ("optimizer.lr", False), ("seed", False)],
        *[("device.precision", False), ("trainer.clip_norm", False), ("scaling.name", False)],
    ],
)
def test_a_resumed_run_may_change_what_makes_no_other_training(key: str, may_change: bool) -> None:
    assert is_marked(key, schema.RESUMABLE) == may_change


def test_a_users_own_key_is_part_of_the_training_and_of_its_group() -> None:
    assert not is_marked("model.my_width", schema.RESUMABLE)
    assert is_marked("data.path", schema.RESUMABLE)
    assert is_marked("model.my_width", schema.SAME_ON_ALL)
    assert not is_marked("modelling.width", schema.SAME_ON_ALL)


def test_the_lists_of_keys_are_those_that_were_kept_by_hand() -> None:
    assert marked(schema.PLACE) == ("resume", "track.run_id")
    assert {*marked(schema.SESSION)} == {"track.", "sweep.", "resume"}
    assert {*marked(schema.CHOSEN)} == {"scaling.", "schedule."}
    assert {*marked(schema.SPEED_NEUTRAL)} == {
        *("trainer.step_size", "optimizer.lr", "optimizer.weight_decay", "scaling.", "schedule."),
    }
    assert {*marked(schema.SAME_ON_ALL)} == {
        *("model.", "data.", "trainer.", "optimizer.", "schedule.", "scaling.", "distributed."),
        *("device.precision", "seed"),
    }


def test_a_report_names_its_conditions_in_this_order() -> None:
    assert conditions() == (
        *("trainer.max_samples", "trainer.max_epochs", "trainer.max_seconds", "data._target_"),
        *("data.batch_size", "model._target_", "optimizer._target_", "optimizer.lr"),
        *("schedule.name", "trainer.microbatch_size", "device.name", "device.precision"),
        *("distributed.processes", "seed"),
    )
    assert {*conditions()} - {"seed"} <= {*keys()}
