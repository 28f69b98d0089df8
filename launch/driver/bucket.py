"""What hosts leave in the bucket: their reports and logs, readable when ssh, the hosts or the slice are gone."""

from pathlib import Path

from driver import hosts
from driver.hosts import Report
from driver.settings import CloudError, Settings
from driver.shell import Shell

LAST_LINES = 20


def reports(settings: Settings, shell: Shell) -> dict[str, Report]:
    """The newest report of each host that ever wrote one. Raises CloudError where the bucket cannot be read."""
    address = f"{settings.folder}/launch/state/*"
    result = shell.ask(["gcloud", "storage", "cat", address, f"--project={settings.project}"])
    if result.status and not result.missing:
        raise CloudError(f"{address} could not be read: {result.reason}.")
    found = hosts.parse(result.out)
    return {host: found[host] for host in settings.hosts if host in found}


def collect(settings: Settings, shell: Shell, folder: str) -> list[Path]:
    """Copies the logs of all hosts into a folder of this machine; the files, in rank order."""
    target = Path(folder or f"runs/launch/{settings.name}/logs")
    if not shell.dry_run:
        target.mkdir(parents=True, exist_ok=True)
    address = f"{settings.folder}/launch/logs/*.log"
    result = shell.ask(["gcloud", "storage", "cp", address, str(target), f"--project={settings.project}"])
    if result.status and not result.missing:
        raise CloudError(f"{address} could not be copied: {result.reason}.")
    files = [target / f"{host}.log" for host in settings.hosts]
    return [file for file in files if file.is_file()]


def show_last(settings: Settings, shell: Shell, files: list[Path], lines: int = LAST_LINES) -> None:
    """Prints the last lines of every host's log, and which hosts left none."""
    for file in files:
        shell.say(f"--- host {file.stem} (rank {hosts.rank(file.stem, settings.hosts)}), the end of {file}")
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]:
            shell.say(f"    {line}")
    silent = [host for host in settings.hosts if host not in {file.stem for file in files}]
    if silent and not shell.dry_run:
        shell.say(f"--- {hosts.names(silent)} left no log.")


def explain(settings: Settings, shell: Shell, found: dict[str, Report]) -> str:
    """Collects and shows the logs of a run that failed; one sentence that names the host that failed first."""
    files = collect(settings, shell, "")
    show_last(settings, shell, files)
    first = hosts.first_failed(found.values())
    if first is None:
        return f"the run {settings.name} did not end well"
    return (
        f"host {first.host} (rank {hosts.rank(first.host, settings.hosts)}) failed first, with exit status "
        f"{first.status} in attempt {first.attempt}; the logs of {len(files)} of {len(settings.hosts)} hosts are above "
        f"and in {files[0].parent if files else settings.folder + '/launch/logs'}"
    )
