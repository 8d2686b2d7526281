"""The device side of gradient download: features up, gradients down, one local step at a time.

Between two exchanges a device is a ``LocalState`` in bytes and nothing else; the front is computed
again when its gradient arrives, so no graph waits for an answer.
"""

from dataclasses import replace

import numpy as np
import torch
from typing_extensions import override

from clients.device_session import DeviceSession
from clients.local_state import LocalState, read_state, stepped
from clients.part_worker import PartWorker
from clients.round_state import RoundState
from fl_app import wire
from fl_app.connections import feature_link_spec
from fl_app.errors import WireError
from fl_app.features_wire import (
    COUNTS,
    ERROR,
    FEATURES,
    NO_FRONT,
    OWN,
    PARAMETER,
    SLOPES,
    STATES,
    UPDATE,
    Begin,
    parameters_in,
    parameters_out,
    read_begin,
)
from fl_app.fomo.feature_link import FeatureLink
from fl_app.fomo.feature_noise import noised
from fl_app.fomo.front import masks_of
from fl_app.payload import Payload, Scalar
from fl_app.schema import SimulationFederation
from fl_app.seeding import generator
from fl_app.settings import aggregation_of, round_tuning
from fl_app.tasks import Batch
from fl_app.updates import Update, layout_hash, travels


class GradientWorker(PartWorker):
    """Handles the exchanges of gradient download by first-order steps."""

    @override
    def _open(self, payload: Payload) -> tuple[RoundState | None, Payload]:
        begin = read_begin(payload)
        session = self._loaded.of(begin.device, begin.model_hash)
        if session is None:
            return None, Payload(NO_FRONT, 0)
        state = LocalState(
            round=begin.round,
            device=begin.device,
            num_devices=begin.num_devices,
            model_hash=begin.model_hash,
            proximal_mu=begin.proximal_mu,
            start=begin.adapter,
            now=self._starting(begin),
        )
        return self._features(session, state, self._link(state))

    def _starting(self, begin: Begin) -> Update:
        """Returns what tuning starts from."""
        return begin.adapter

    @override
    def _continue(self, blob: bytes, payload: Payload) -> tuple[RoundState | None, Payload]:
        state = read_state(blob)
        session = self._loaded.of(state.device, state.model_hash)
        if session is None:
            return None, Payload(NO_FRONT, payload.step)
        if payload.step != state.step:
            raise WireError("wrong-step", f"at local step {state.step}, got {payload.step}")
        match payload.kind:
            case "states":
                return self._slopes(session, state, payload)
            case "gradient":
                return self._step(session, state, payload)
            case other:
                raise WireError("wrong-kind", f"{other!r} is no answer to a device")

    # --- the three things a device does ------------------------------------------------------

    def _features(
        self, session: DeviceSession, state: LocalState, link: FeatureLink
    ) -> tuple[LocalState, Payload]:
        """Front on the next batch: features up."""
        batch, loss = self._batch(session, state), session.loss_of(state.device)
        session.write(state.now)
        features = session.front.features(batch, loss, session.prompt)
        privacy = self._strategy.privacy
        if privacy.noise_multiplier > 0:
            features = noised(
                features,
                clip_norm=privacy.clip_norm,
                noise_multiplier=privacy.noise_multiplier,
                rng=self._secret(state),
            )
        features = link.up(features, state.step)
        rng = generator(self._config.seed, "features", state.round, state.device, state.step)
        arrays = self._wire.features(features, rng)
        error = self._wire.error(features, arrays)
        at_server = session.trunk_names(state.now)
        if self._strategy.labels == "server":
            arrays["labels"] = batch["labels"].numpy()
            if (counts := session.counts_of(state.device)) is not None:
                arrays[COUNTS] = counts
            at_server |= session.head_names
        arrays |= parameters_out(
            OWN, {name: torch.from_numpy(state.now[name]) for name in sorted(at_server)}
        )
        kept = replace(state, readout={"readout": features.readout.numpy()})
        return kept, Payload(FEATURES, state.step, {ERROR: error, **link.scalars()}, arrays)

    def _slopes(
        self, session: DeviceSession, state: LocalState, payload: Payload
    ) -> tuple[LocalState, Payload]:
        """Head on the last states: their gradient up, the head's own kept for the step."""
        states = self._wire.decode(payload.arrays, STATES, dims=2)
        readout = torch.from_numpy(state.readout["readout"].copy())
        if len(states) != int(readout.sum()):
            raise WireError("wrong-shape", f"{len(states)} states for {int(readout.sum())} places")
        session.write(state.now)
        session.zero()
        loss, slopes = session.head.loss_gradient(
            states,
            readout,
            self._batch(session, state)["labels"],
            session.loss_of(state.device),
            session.num_prompt,
        )
        rng = generator(self._config.seed, "slopes", state.round, state.device, state.step)
        arrays = self._wire.code(SLOPES, slopes, rng, relative=True)
        heads = session.gradients(session.head_names)
        if self._strategy.shared_gradient:
            arrays |= parameters_out(PARAMETER, heads)
            heads = {}
        waiting = {name: gradient.numpy().copy() for name, gradient in heads.items()}
        after = replace(state, waiting=waiting, loss_sum=state.loss_sum + loss)
        return after, Payload(SLOPES, state.step, {}, arrays)

    def _step(
        self, session: DeviceSession, state: LocalState, payload: Payload
    ) -> tuple[LocalState | None, Payload]:
        """One optimiser step; then the next features, or after the last step the update."""
        gradient, batch = self._wire.read_gradient(payload), self._batch(session, state)
        link = self._link(state)
        gradient = link.down(gradient, masks_of(batch, gradient.hidden or ()), state.step)
        session.write(state.now)
        session.zero()
        session.front.backward(batch, session.prompt, gradient)
        found = session.gradients(session.names - session.head_names)
        arrived = parameters_in(PARAMETER, payload.arrays)
        if self._strategy.labels == "server":
            state = replace(state, loss_sum=state.loss_sum + float(payload.scalars["loss"]))
        after = stepped(
            state,
            found | arrived,
            round_tuning(self._config, state.round),
            self._tuned(state),
            num_steps=len(self._plan(session, state)),
        )
        if after.step < len(self._plan(session, after)):
            return self._features(session, after, link)
        return None, self._update(session, after, link)

    def _update(self, session: DeviceSession, state: LocalState, link: FeatureLink) -> Payload:
        scalars: dict[str, Scalar] = {
            wire.ROUND: state.round,
            wire.DEVICE: state.device,
            wire.MODEL_HASH: state.model_hash,
            wire.LAYOUT_HASH: layout_hash(state.now),
            wire.NUM_EXAMPLES: len(session.encoded[state.device]),
            wire.LOSS: state.loss_sum / state.step,
            wire.SECONDS: state.seconds,
            **link.scalars(),
        }
        update = {name: state.now[name] - state.start[name] for name in self._tuned(state)}
        return Payload(UPDATE, state.step, scalars, update)

    # --- what they need ----------------------------------------------------------------------

    def _tuned(self, state: LocalState) -> set[str]:
        how = aggregation_of(self._config.peft)
        return {name for name in state.now if travels(name, how, state.round)}

    def _link(self, state: LocalState) -> FeatureLink:
        spec = feature_link_spec(self._config)
        return FeatureLink(spec, self._config.seed, state.round, state.device)

    def _secret(self, state: LocalState) -> np.random.Generator:
        """Returns the source of noise: repeatable in simulation, and else seeded by the system."""
        match self._config.federation:
            case SimulationFederation():
                place = state.round, state.device, state.step
                return generator(self._config.seed, "feature-noise", *place)
            case _:
                return np.random.default_rng()

    def _plan(self, session: DeviceSession, state: LocalState) -> list[list[int]]:
        return self._rows(session, state.device, state.round)

    def _batch(self, session: DeviceSession, state: LocalState) -> Batch:
        rows = self._plan(session, state)[state.step]
        return session.task.batch(session.encoded[state.device], rows)
