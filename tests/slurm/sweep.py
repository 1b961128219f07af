"""A sweep on a real Slurm of one node, set up on this machine: `make slurm-test` (Debian or Ubuntu, as root).

Installs slurm-wlm and munge, starts their daemons, runs four jobs through hydra/launcher=slurm, takes one of them away
in mid-training by `scontrol requeue`, and checks that all finish, that the one went on where its checkpoint was, and
that the same command again submits nothing. The daemons are stopped by their pid files, however it ends.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEEDS = (1, 2, 3, 4)
EPOCHS, BATCHES = 120, 5
WORDS = [
    "data.subjects=[4,2,2]", "data.size=32", "data.batch_size=8", "logger=csv", f"trainer.max_epochs={EPOCHS}",
    "trainer.log_every_steps=1", "trainer.checkpoint_every_steps=3", "trainer.pictures=0", "trainer.progress=false",
    "model.hidden_channels=16", "model.codebook_dim=8", "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0",
    "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=3", "hydra.launcher.timeout_min=20",
]  # fmt: skip
CONF = """\
ClusterName=mri-synth-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=2
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)  # noqa: T201


def call(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_for(what: str, condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(0.5)


def install() -> None:
    """slurm-wlm and munge from the distribution's packages, where they are not here."""
    if os.geteuid():
        raise SystemExit("Slurm's daemons want root: sudo make slurm-test")
    if all(shutil.which(name) for name in ("slurmctld", "slurmd", "srun", "munged", "mungekey")):
        return
    say("installing slurm-wlm and munge")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    call("apt-get", "update", "-q", check=False)
    call("apt-get", "install", "-q", "-y", "--no-install-recommends", "slurm-wlm", "munge")


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """One node, one partition, while this lasts."""
    own_munge = not answers("munge", "-n")
    if own_munge:
        if not Path("/etc/munge/munge.key").exists():
            call("runuser", "-u", "munge", "--", "mungekey", "--create")
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        call("runuser", "-u", "munge", "--", "munged")
    host = socket.gethostname().partition(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, cpus=os.cpu_count(), megabytes=memory * 9 // 10))
    os.environ["SLURM_CONF"] = str(conf)
    try:
        call("slurmctld", "-f", str(conf))
        call("slurmd", "-f", str(conf))
        wait_for("an idle node", lambda: "idle" in call("sinfo", "-h", "-o", "%T", check=False), 60)
        say(call("sinfo", "--version").strip() + ": " + call("srun", "-n1", "hostname").strip() + " answers srun")
        yield
    finally:
        call("scancel", "-u", "root", check=False)
        for name in ("slurmd", "slurmctld"):
            stop(folder / f"{name}.pid")
        if own_munge:
            stop(Path("/run/munge/munged.pid"))


def answers(*words: str) -> bool:
    return subprocess.run(words, capture_output=True).returncode == 0


def stop(pid_file: Path) -> None:
    """End a daemon by its pid file, and wait until it has."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    wait_for(f"the end of {pid_file.stem}", lambda: not Path(f"/proc/{pid}").exists(), 30)
    say(f"{pid_file.stem} has ended")


def start(sweep: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "mri_synth.run", "-m", f"seed={','.join(map(str, SEEDS))}", *WORDS,
             f"hydra.sweep.dir={sweep}"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float) -> str:
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    if process.returncode:
        raise SystemExit(f"the sweep ended with status {process.returncode}\n{output}")
    return output


def rows(run: Path) -> list[dict[str, str]]:
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return [r for r in csv.DictReader(file) if r["name"] == "train/loss"]


def sweep_with_one_job_taken_away(sweep: Path) -> None:
    process = start(sweep)
    victim = sweep / "0_seed-1"
    wait_for("the first job's checkpoints", lambda: len(rows(victim)) > 20 or process.poll() is not None)
    if process.poll() is not None:
        raise SystemExit(finish(process, 1))
    say("squeue:\n" + call("squeue", "-o", "%i %T %r"))
    job = json.loads((victim / "identity.json").read_text())
    number = (victim / ".hydra/job").read_text().split("-")
    task = f"{number[1]}_{number[2]}"  # of the array
    say(f"job {task} ({victim.name}) is {job['state']} and at step {rows(victim)[-1]['step']}: scontrol requeue {task}")
    call("scontrol", "requeue", task)
    wait_for("its being queued again", lambda: "PENDING" in call("squeue", "-h", "-j", task, "-o", "%T", check=False))
    stopped = int(rows(victim)[-1]["step"])
    say(f"it was taken away at step {stopped}; squeue:\n" + call("squeue", "-o", "%i %T %r"))
    output = finish(process, 900)
    noise = "sacct", "accounting storage"  # none here, and submitit says so again and again
    say("\n".join(line for line in output.splitlines() if not any(word in line for word in noise)))
    for seed in SEEDS:
        run = sweep / f"{seed - 1}_seed-{seed}"
        results = json.loads((run / "results.json").read_text())
        counts = Counter(int(r["step"]) for r in rows(run))
        assert results["status"] == "finished", run
        assert json.loads((run / "identity.json").read_text())["state"] == "finished", run
        assert results["resumed"] == (run == victim), f"{run}: resumed {results['resumed']}"
        assert set(counts) == set(range(EPOCHS * BATCHES)), f"{run}: {len(counts)} steps"
        assert set(counts.values()) == {1}, f"{run}: a step came twice"
    assert stopped < EPOCHS * BATCHES - 1, "it had finished before it was taken away"
    say(f"all {len(SEEDS)} jobs finished; {victim.name} went on, every step of each is there once")


def the_same_again_submits_nothing(sweep: Path) -> None:
    before = {p.name for p in (sweep / ".submitit").iterdir()}
    began = time.monotonic()
    output = finish(start(sweep), 120)
    assert output.count(" is finished: ") == len(SEEDS), output
    assert {p.name for p in (sweep / ".submitit").iterdir()} == before, "something was submitted"
    say(f"the same command again: {len(SEEDS)} jobs passed over in {time.monotonic() - began:.1f} s, none submitted")


def main() -> None:
    install()
    folder = Path(tempfile.mkdtemp(prefix="mri-synth-slurm-"))
    with cluster(folder):
        sweep_with_one_job_taken_away(folder / "sweep")
        the_same_again_submits_nothing(folder / "sweep")
    shutil.rmtree(folder)
    say("passed")


if __name__ == "__main__":
    main()
