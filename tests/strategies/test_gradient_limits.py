"""What bounds a round, what a failing one frees, and what is said of options without effect."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from clients.gradient_worker import GradientWorker
from fl_app import step_wire
from fl_app.config import load_config
from fl_app.errors import ConfigError, RunError
from fl_app.fomo import feature_noise
from fl_app.fomo.trunk import Held
from fl_app.schema import GradientDownloadStrategy
from strategies import transport
from strategies.fit import require_fit
from tests.exchange_fixtures import (
    counting,
    nothing_left_behind,
    number,
    roster_of,
    threaded,
    toy_app,
)
from tests.federation_fixtures import Player, player, tiny_federation
from tests.gradient_fixtures import Place, play, words_of

__all__ = ["player", "tiny_federation"]

DEVICES, IN_FLIGHT, TIMEOUT_S = 5, 2, 1000.0


def test_steps_need_a_limit() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.max_steps=null.*set a number"):
        require_fit(load_config("strategy=gradient_download peft=prompt finetune.max_steps=null"))
    require_fit(load_config("finetune.max_steps=null"))  # an emulator's steps keep nobody waiting


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("strategy.variant=prompt peft=prompt strategy.cut=2", ["strategy.cut=2"]),
        ("strategy.variant=lora strategy.left=1 strategy.cut=3", ["strategy.cut=3"]),
        ("strategy.variant=cut strategy.cut=2 strategy.right=1", ["strategy.right=1"]),
        ("strategy.variant=scalar finetune.lr=0.1 strategy.left=1", ["finetune.lr=0.1"]),
        ("strategy.variant=cut finetune.lr=0.1", []),
    ],
)
def test_options_without_effect_are_named(
    words: str, named: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "deft"):
        require_fit(load_config(f"strategy=gradient_download {words}"))
    assert [r.getMessage().partition(" does not use ")[2] for r in caplog.records] == named


def test_a_step_whose_exchange_fails_holds_no_graph(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Held] = []
    init = Held.__init__

    def keeping(one: Held, *given: Any) -> None:
        init(one, *given)
        held.append(one)

    def dies(place: Place, _sent: Message, reply: Message) -> list[Message]:
        if place.kind == "states":
            raise RunError("a simulation worker process died")
        return [reply]

    monkeypatch.setattr(Held, "__init__", keeping)
    with pytest.raises(RunError, match="worker process died"):
        play(player, *words_of("prompt"), spoil=dies)
    assert len(held) == 1
    assert held[0]._graph is None


# --- streams -----------------------------------------------------------------------------------


def _streams(max_in_flight: int = IN_FLIGHT) -> transport.Transport:
    config = load_config(
        "strategy=gradient_download strategy.transport=stream "
        f"strategy.max_in_flight={max_in_flight} strategy.exchange_timeout_s={TIMEOUT_S}"
    )
    assert isinstance(config.strategy, GradientDownloadStrategy)
    return transport.build_transport(config, config.strategy, roster_of(DEVICES), DEVICES)


def test_no_port_is_open_before_the_first_round() -> None:
    """So nothing is left where something fails between building and the first round."""
    with nothing_left_behind():
        built = _streams()
    built.close()


@contextlib.contextmanager
def _orders(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[step_wire.StreamOrder]]:
    seen: list[step_wire.StreamOrder] = []
    message = step_wire.stream_message

    def keeping(order: step_wire.StreamOrder, node: int) -> Message:
        seen.append(order)
        return message(order, node)

    with monkeypatch.context() as patch:
        patch.setattr(step_wire, "stream_message", keeping)
        yield seen


@pytest.mark.parametrize(("max_in_flight", "passes"), [(2, 3), (5, 1), (1, 5)])
def test_a_device_outwaits_the_exchanges_of_all_others(
    monkeypatch: pytest.MonkeyPatch, max_in_flight: int, passes: int
) -> None:
    """It hears nothing while every pass of a step may take as long as an exchange may."""
    built = _streams(max_in_flight)
    with nothing_left_behind(), contextlib.ExitStack() as stack:
        stack.callback(built.close)
        seen = stack.enter_context(_orders(monkeypatch))
        grid = stack.enter_context(threaded(toy_app(counting), DEVICES))
        exchange = stack.enter_context(built.open(grid, 1))
        answers = exchange.exchange(dict.fromkeys(range(DEVICES), number(1)), 60.0)
    assert answers == dict.fromkeys(range(DEVICES), number(1))
    assert len(seen) == DEVICES
    assert all(order.idle_s >= passes * TIMEOUT_S + 60.0 for order in seen)


# --- noise -------------------------------------------------------------------------------------


def _noise(player: Player, monkeypatch: pytest.MonkeyPatch, federation: str) -> list[torch.Tensor]:
    """Runs one local step of every device, twice in all; returns what each put on zeros."""
    drawn: list[torch.Tensor] = []
    noised = feature_noise.noised

    def keeping(features: Any, *, rng: np.random.Generator, **settings: Any) -> Any:
        drawn.append(torch.from_numpy(rng.standard_normal(8)))
        return noised(features, rng=rng, **settings)

    secret = GradientWorker._secret
    kind = load_config(f"federation={federation}").federation

    def as_there(worker: GradientWorker, state: Any) -> np.random.Generator:
        with monkeypatch.context() as there:
            there.setattr(worker, "_config", dataclasses.replace(worker._config, federation=kind))
            return secret(worker, state)

    with monkeypatch.context() as patch:
        patch.setattr("clients.gradient_worker.noised", keeping)
        patch.setattr(GradientWorker, "_secret", as_there)
        words = ("strategy.num_rounds=1", "finetune.max_steps=1", "strategy.labels=server")
        for _ in range(2):
            play(player, *words_of("prompt", *words, "strategy.privacy.noise_multiplier=1"))
    return drawn


def test_real_devices_draw_noise_that_no_seed_tells(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _noise(player, monkeypatch, "edge")
    assert len({tuple(one.tolist()) for one in real}) == len(real) == 8
    simulated = _noise(player, monkeypatch, "simulation")
    assert len({tuple(one.tolist()) for one in simulated}) == 4  # equal in both runs
