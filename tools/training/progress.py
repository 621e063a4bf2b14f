"""Log and display the progress of a run."""

import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from knnstore.files import write_atomically
from training.telling import say
from training.trainer import Trainer

LOG_STEPS, LINE_SECONDS = 10, 30.0


class Progress:
    """Writes a JSON line every LOG_STEPS steps, and shows a bar, or occasional lines if stderr isn't a terminal."""

    def __init__(self, path: Path, trainer: Trainer, start: int) -> None:
        log = kept_lines(path.read_text(), start) if path.exists() else ""
        write_atomically(path, log.encode())
        self.log, self.trainer = path.open("a"), trainer
        self.bar = tqdm(total=trainer.plan.steps, initial=start, unit="step", disable=None, dynamic_ncols=True)
        self.losses: list[float] = []
        self.seconds, self.last_line = 0.0, time.perf_counter()

    def after(self, step: int, loss: float, seconds: float) -> None:
        """Record that step number ``step`` (from 1) has ended."""
        self.losses.append(loss)
        self.seconds += seconds
        self.bar.update()
        plan = self.trainer.plan
        if step % LOG_STEPS == 0 or step == plan.steps:
            rate = len(self.losses) * plan.batch * self.trainer.recipe.context / self.seconds
            mean = sum(self.losses) / len(self.losses)
            learning_rate = self.trainer.learning_rate(step - 1)
            self.write(step=step, loss=mean, learning_rate=learning_rate, tokens_per_second=round(rate))
            self.bar.set_postfix(loss=f"{mean:.3f}", tokens_s=f"{rate:.0f}")
            if self.bar.disable and time.perf_counter() - self.last_line > LINE_SECONDS:
                left = (plan.steps - step) * self.seconds / len(self.losses) / 60
                say(f"step {step}/{plan.steps}, loss {mean:.3f}, {rate:.0f} tokens/s, {left:.0f} min left")
                self.last_line = time.perf_counter()
            self.losses, self.seconds = [], 0.0

    def write(self, **values: Any) -> None:
        """Write one line of the log; ``step`` is always among the values."""
        self.log.write(json.dumps(values) + "\n")
        self.log.flush()

    def close(self) -> None:
        """Close the log and the bar."""
        self.bar.close()
        self.log.close()


def kept_lines(log: str, step: int) -> str:
    """Return the lines of a log up to ``step``; a resumed run writes later or partial lines again."""
    whole = [line for line in log.splitlines(keepends=True) if line.endswith("\n")]
    return "".join(line for line in whole if json.loads(line)["step"] <= step)
