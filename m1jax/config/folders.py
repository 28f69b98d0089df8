"""Paths of everything that a run writes, from its config."""

from pathlib import Path
from typing import Any

from m1jax.errors import UserError

RESULTS = "results.json"
"""File of an evaluation's folder that holds its numbers."""


class RunFolders:
    """The paths of a run; RunConfig inherits them."""

    folder: str
    data: Any
    """The run's DataConfig."""

    @property
    def corpus(self) -> Path:
        """Folder of documents."""
        return Path(self.data.corpus or f"{self.folder}/corpus")

    @property
    def questions(self) -> Path:
        """Folder of the questions that `m1 synthesize` makes."""
        return Path(self.folder) / "synthesis"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return Path(self.data.tokenizer or f"{self.folder}/tokenizer")

    @property
    def tokenizer_report(self) -> Path:
        """Folder of the tokenizer's report and of the tokenizers trained for it."""
        return Path(self.folder) / "tokenizer-report"

    @property
    def rows(self) -> Path:
        """Folder of packed rows; raises UserError where the config reads them from a bucket."""
        if "://" in self.data.rows:
            raise UserError(
                f"config key data.rows = {self.data.rows} is an address, but `m1 pack` writes to a disk: pack with "
                f"--set data.rows=FOLDER, then copy that folder to the address."
            )
        return Path(self.data.rows or f"{self.folder}/rows")

    @property
    def rows_address(self) -> str:
        """Where packed rows are read from: the folder above, or an address such as gs://bucket/rows."""
        return self.data.rows or str(self.rows)

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return Path(self.folder) / "checkpoints"

    @property
    def journal(self) -> Path:
        """Folder of what training records: metrics.jsonl, TensorBoard events, starts and plots."""
        return Path(self.folder) / "train"

    @property
    def history(self) -> Path:
        """File that records changes of the stages ahead of a checkpoint."""
        return self.journal / "history.jsonl"

    @property
    def export(self) -> Path:
        """Folder into which `m1 quickstart` exports."""
        return Path(self.folder) / "export"

    def evaluation(self, step: int) -> Path:
        """Folder of the results of a checkpoint; step 0 is the initial model."""
        return Path(self.folder) / "eval" / f"step-{step}"
