"""The round loop that every strategy here shares; `fedavg` and others fill it in."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import ceil

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from strategies import aggregation, wire
from strategies.algorithm import Algorithm
from strategies.federation import Federation, FederationError, sample_cohort
from strategies.interfaces import CodecFor, RoundResult, ServerState
from strategies.known_states import KnownStates
from strategies.norm_limit import NormLimit
from strategies.randomness import keyed_generator
from strategies.replies import Collected, Tally, Validation
from strategies.requests import Request
from strategies.stragglers import KEEP, Stragglers
from strategies.wire import Arrays

_TRANSPORT_SHARE, _TRANSPORT_SECONDS = 0.1, 30.0
_FAILED_ROUNDS, _NORMS, _STATES = "failed-rounds", "accepted-norms", "client-states"

log = logging.getLogger("flwr.fl_app")


class RoundLoop(Algorithm):
    """Rounds of sending, training, checking and averaging, around an algorithm."""

    def __init__(
        self,
        *,
        seed: int,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        evaluate_every: int = 1,
        min_fraction: float = 0.5,
        max_failed_rounds: int = 3,
        round_timeout: float = 3600.0,
        normalisation_policy: str = "average",
        max_update_norm: float = 0.0,
        max_first_update_norm: float = 100.0,
        straggler_fraction: float = 0.0,
        stragglers: str = KEEP,
        local_epochs: int = 1,
        batch_size: int = 1,
        validation_fraction: float | None = None,
    ) -> None:
        """Keep the options; see `[tool.flwr.app.config]` for their meaning."""
        self.seed = seed
        self.fraction_train = fraction_train
        self.fraction_evaluate = fraction_evaluate
        self.evaluate_every = evaluate_every
        self.min_fraction = min_fraction
        self.max_failed_rounds = max_failed_rounds
        self.round_timeout = round_timeout
        self.pooled = normalisation_policy == "pooled"
        norms = (max_update_norm, max_first_update_norm)
        self._limits = [NormLimit(*norms), NormLimit(*norms, beside=True)]
        self.single_updates = max_update_norm > 0
        """Whether nodes send each client's update, not the sum of theirs."""
        self._stragglers = Stragglers(
            straggler_fraction, stragglers, local_epochs, seed
        )
        self._batch_size = batch_size
        self._validation_fraction = validation_fraction
        self._failed_rounds = 0  # in a row, until now
        self._states = KnownStates()
        self._population = 0  # training examples of all clients
        self._upload: CodecFor | None = None
        self._download: CodecFor | None = None
        self.remembers = self.KEEPS_STATE
        """Whether clients keep something from one round to the next."""

    def compress(
        self, upload: CodecFor | None, download: CodecFor | None, *, feedback: bool
    ) -> None:
        """Have updates, and the global model on its way out, sent in code.

        Args:
            upload: codec for arrays laid out as an update; None to send them as are.
            download: codec for arrays laid out as the model; likewise.
            feedback: whether clients keep what their codec leaves out.
        """
        self._upload, self._download = upload, download
        self.single_updates = self.single_updates or upload is not None
        self.remembers = self.remembers or (feedback and upload is not None)

    def state(self) -> ServerState:
        """Return what `restore` needs for the next round to be as if never stopped."""
        return ServerState(
            {
                _FAILED_ROUNDS: self._failed_rounds,
                _NORMS: [limit.accepted for limit in self._limits],
                _STATES: self._states.as_json(),
            }
        )

    def restore(self, state: ServerState) -> None:
        """Go on from a state that `state` returned.

        A run that ended for want of a quorum is given as many rounds anew.
        """
        self._failed_rounds = int(state.values[_FAILED_ROUNDS])
        for limit, accepted in zip(self._limits, state.values[_NORMS], strict=True):
            limit.accepted = list(accepted)
        self._states = KnownStates.of_json(state.values[_STATES])

    def rounds(
        self, federation: Federation, arrays: Arrays, num_rounds: int, *, first: int = 1
    ) -> Iterator[RoundResult]:
        """Yield each round's result, from round `first` to `num_rounds`.

        Args:
            federation: the nodes and clients.
            arrays: the global model of round first - 1 (never mutated).
            num_rounds: the last round.
            first: the first round, above 1 when a run goes on.

        Raises:
            FederationError: `max_failed_rounds` rounds in a row missed the quorum.
        """
        if first > num_rounds and self._failed_rounds >= self.max_failed_rounds:
            raise self._given_up("no round is left")
        if self._failed_rounds >= self.max_failed_rounds:
            self._failed_rounds = 0
        self._population = sum(map(federation.num_examples, federation.client_ids))
        for round in range(first, num_rounds + 1):
            result = self._round(federation, arrays, round)
            arrays = result.arrays
            met = result.quorum_met
            self._failed_rounds = 0 if met else self._failed_rounds + 1
            yield result
            if self._failed_rounds >= self.max_failed_rounds:
                raise self._given_up(_first_reason(result))

    def _given_up(self, reason: str) -> FederationError:
        return FederationError(
            f"{self._failed_rounds} rounds in a row missed the quorum of min-fraction "
            f"= {self.min_fraction:g}; last: {reason}"
        )

    def validate(
        self, federation: Federation, arrays: Arrays, round: int
    ) -> Validation | None:
        """Let all clients validate the global model of `round`, without training it.

        Nobody does where `fraction_evaluate` is 0.
        """
        cohort = federation.client_ids if self.fraction_evaluate else []
        request = self._request(round + 1, [], cohort)
        contents = self._contents(federation, arrays, request)
        tally = Tally(
            federation.num_examples,
            validation_fraction=self._validation_fraction,
            own_validation=federation.own_validation.tolist(),
        )
        for reply in federation.exchange(
            contents, wire.EVALUATE, timeout=self.round_timeout
        ):
            tally.add(reply, contents[reply.node_id])
        return tally.validation()

    @property
    def gave_up(self) -> bool:
        """Whether too many rounds in a row missed the quorum."""
        return self._failed_rounds >= self.max_failed_rounds

    def evaluates(self, round: int) -> bool:
        """Whether the model of this round is evaluated (the loop adds the last one)."""
        return round % self.evaluate_every == 0

    def quorum(self, cohort_size: int) -> int:
        """Return how many clients must be counted in; at least one."""
        return max(1, ceil(self.min_fraction * cohort_size - 1e-9))

    def _num_steps(
        self, federation: Federation, cohort: list[int], round: int
    ) -> dict[int, int]:
        """Return how many local steps each client of a cohort is to take."""
        slow = self._stragglers.schedule(cohort, round)
        return {
            client: slow.get(client, self._stragglers.epochs)
            * ceil(federation.num_examples(client) / self._batch_size)
            for client in cohort
        }

    def _cohort(self, federation: Federation, fraction: float, round: int) -> list[int]:
        clients = federation.client_ids
        return sample_cohort(clients, fraction, seed=self.seed, round=round)

    def _contents(
        self, federation: Federation, arrays: Arrays, request: Request
    ) -> dict[int, RecordDict]:
        """Return one message content per node; the model's record is one for all."""
        options = ConfigRecord({**self.client_options(request.round)})
        shared: dict[str, ArrayRecord | ConfigRecord]
        if self._download is not None:
            draws = keyed_generator(self.seed, "download", round=request.round)
            try:
                arrays = self._download(arrays).encode(arrays, draws)
            except ValueError as error:
                raise FederationError(
                    f"download-compression cannot encode the global model: {error}"
                ) from error
        shared = {wire.MODEL: wire.pack(arrays), wire.STRATEGY: options}
        beside = self.client_arrays() if request.train else {}
        if beside:
            shared[wire.BESIDE] = wire.pack(beside)
        return request.contents(federation, shared)

    def _request(self, round: int, train: list[int], evaluate: list[int]) -> Request:
        return Request(
            round,
            train,
            evaluate,
            budget(self.round_timeout),
            self.single_updates,
            states=self._states if self.remembers else None,
        )

    def _round(self, federation: Federation, arrays: Arrays, round: int) -> RoundResult:
        start = time.monotonic()
        drawn = self._cohort(federation, self.fraction_train, round)
        cohort = self._stragglers.taking_part(drawn, round)
        validating = (
            self._cohort(federation, self.fraction_evaluate, round)
            if self.evaluates(round - 1)
            else []
        )
        slow = self._stragglers.schedule(drawn, round)
        request = self._request(round, cohort, validating)
        if slow:
            whole = self._stragglers.epochs
            epochs = {client: slow.get(client, whole) for client in cohort}
            request = replace(request, epochs=epochs)
        contents = self._contents(federation, arrays, request)
        base = aggregation.to_moments(arrays) if self.pooled else arrays
        sent = self.summed(base)
        total = self.collect(sent, len(cohort))
        steps = self._num_steps(federation, drawn, round) if self.COUNTS_STEPS else None
        tally = Tally(
            federation.num_examples,
            total,
            self._limits,
            steps,
            self._validation_fraction,
            self._upload(sent).decode if self._upload else None,
            cohort,
            federation.own_validation.tolist(),
        )
        for reply in federation.exchange(
            contents, wire.TRAIN, timeout=self.round_timeout
        ):
            tally.add(reply, contents[reply.node_id])
        tally.finish()
        result = RoundResult(
            round=round,
            arrays=arrays,
            cohort=cohort,
            trained=sorted(tally.trained, key=lambda m: m[wire.CLIENT_IDS]),
            failures=sorted(tally.failures, key=lambda f: f.client_id),
            validation=tally.validation(),
            upload_bytes=tally.upload_bytes,
            download_bytes=sum(wire.num_bytes(c) for c in contents.values()),
        )
        for failure in result.failures:
            log.warning(
                "Round %d leaves out %s on node %d: %s",
                *(round, federation.describe(failure.client_id), failure.node_id),
                failure.reason,
            )
        result.quorum_met = len(result.trained) >= self.quorum(len(cohort))
        if result.quorum_met:
            for i, limit in enumerate(self._limits):
                limit.accept(tally.norms(i))
            self._step(result, base, total)
            counted = [int(row[wire.CLIENT_IDS]) for row in result.trained]
            self._states.counted(counted, _dealt(contents), round, tally.own_nodes)
        else:
            log.warning(
                "Round %d keeps the old model: %d of %d clients were counted in",
                *(round, len(result.trained), len(cohort)),
            )
        result.seconds = time.monotonic() - start
        return result

    def _step(self, result: RoundResult, base: Arrays, total: Collected) -> None:
        """Take the server's half of the round: the next global model."""
        mean = total.mean()
        result.alignment = alignment(mean, result.update_norm)
        updated = self.server_update(base, mean, result.trained)
        result.arrays = aggregation.from_moments(updated) if self.pooled else updated


def _dealt(contents: Mapping[int, RecordDict]) -> dict[int, list[int]]:
    """Return the clients that each node was to train."""
    return {
        node: wire.integers(wire.take(content, wire.TASK, ConfigRecord), wire.TRAIN_IDS)
        for node, content in contents.items()
    }


def alignment(mean: Arrays, length: float | None) -> float | None:
    """Return how far clients agree: their updates' mean cosine to the mean update.

    Weighted by examples and norm: with p_k the shares of examples, the norm of the
    mean is sum_k p_k |u_k| cos(u_k, mean), so it is |mean| / sum_k p_k |u_k|: 1 where
    all point one way, near 0 where they cancel out.

    Args:
        mean: the mean update.
        length: the updates' mean norm; None where nobody says it.
    """
    return aggregation.norm(mean) / length if length else None


def budget(timeout: float) -> float:
    """Return the seconds a node may work so that its reply is there at the timeout."""
    return timeout - min(_TRANSPORT_SHARE * timeout, _TRANSPORT_SECONDS)


def _first_reason(result: RoundResult) -> str:
    if not result.failures:
        return "no client replied"
    first = result.failures[0]
    return f"client {first.client_id} on node {first.node_id}: {first.reason}"
