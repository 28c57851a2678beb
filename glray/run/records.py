"""The typed records of a run, written by training and read by report, search and benchmarks."""

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Execution:
    """What float sums depend on."""

    num_workers: int
    threads_per_worker: int
    parallelism: str
    activation_checkpointing: bool
    compile: bool
    device: str
    """Name of the GPU, else of the CPU: rank 0's."""
    torch: str
    transformers: str
    micro_batch_tokens: dict[str, int]
    """Tokens of a worker's batch that go through the model at once, by sequence length."""

    def rows_at_once(self, seq_len: int) -> int:
        """Windows of a micro-batch at ``seq_len``; a length never trained goes by the least."""
        tokens = self.micro_batch_tokens.get(str(seq_len), min(self.micro_batch_tokens.values()))
        return max(1, tokens // seq_len)

    def at(self, seq_lens: tuple[int, ...]) -> "Execution":
        """Only with the micro-batches of ``seq_lens``: what a run of these lengths depends on."""
        known = {str(n): self.micro_batch_tokens[str(n)] for n in seq_lens}
        return replace(self, micro_batch_tokens=known)

    def differences(self, before: dict[str, object]) -> list[str]:
        """``name before → now`` of what differs from a recorded execution."""
        now = asdict(self)
        return [
            f"{name} {before.get(name)} → {now[name]}"
            for name in now
            if before.get(name) != now[name]
        ]
