"""Training waits for the processor, for the heat and for memory; all readings are made up here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from gradsense.agent.limits import Host, Interrupted, ResourceLimits, Throttle, TooMuchMemory


class Bench(Host):
    """A machine and its clock. Sleeping moves the clock and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.cpu = 0.0
        self.resident: float | None = 100.0
        self.available: float | None = 4000.0
        self.degrees: Callable[[], float | None] = lambda: None

    def cpu_s(self) -> float:
        return self.cpu

    def resident_mb(self) -> float | None:
        return self.resident

    def available_mb(self) -> float | None:
        return self.available

    def temperature_c(self) -> float | None:
        return self.degrees()

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def compute(self, seconds: float) -> None:
        self.now += seconds
        self.cpu += seconds

    def throttle(self, wanted: Callable[[], bool] = lambda: False, **limits: float) -> Throttle:
        return Throttle(
            ResourceLimits.model_validate(limits),
            wanted=wanted,
            machine=self,
            clock=lambda: self.now,
            sleep=self.sleep,
        )


def test_a_block_is_paid_for_in_sleep() -> None:
    bench = Bench()
    throttle = bench.throttle(cpu_share=0.25)
    bench.compute(2.0)
    throttle.between()
    # 2 s at a quarter of a core take 8 s.
    assert bench.now == pytest.approx(8.0)
    assert throttle.paused == {"cpu": pytest.approx(6.0), "temperature": 0.0, "memory": 0.0}
    throttle.between()
    assert bench.now == pytest.approx(8.0), "it is paid once"


def test_the_share_is_kept_over_many_blocks() -> None:
    bench = Bench()
    throttle = bench.throttle(cpu_share=0.1)
    for _ in range(50):
        bench.compute(0.2)
        throttle.between()
    assert bench.cpu / bench.now == pytest.approx(0.1)


def test_idling_saves_up_ten_seconds_and_no_more() -> None:
    bench = Bench()
    throttle = bench.throttle(cpu_share=0.5)
    bench.now = 10_000.0
    throttle.between()
    bench.compute(10.0)  # 5 s saved up, 5 s filled up meanwhile
    throttle.between()
    assert throttle.paused["cpu"] == 0
    bench.compute(1.0)
    throttle.between()
    assert throttle.paused["cpu"] == pytest.approx(1.0)


def test_heat_pauses_until_it_is_five_degrees_cooler() -> None:
    bench = Bench()
    throttle = bench.throttle(temperature_c=80)
    bench.degrees = lambda: 90 - bench.now  # a degree a second
    throttle.between()
    assert bench.now == pytest.approx(15.0)  # 75 °C
    assert throttle.paused["temperature"] == pytest.approx(15.0)
    bench.degrees = lambda: 79.0
    bench.now += 60
    throttle.between()
    assert throttle.paused["temperature"] == pytest.approx(15.0), "79 °C is no reason to begin"


def test_no_sensor_and_no_limit_mean_no_pause() -> None:
    bench = Bench()
    bench.throttle().between()
    bench.degrees = lambda: 150.0
    throttle = Throttle(
        ResourceLimits(temperature_c=None),
        machine=bench,
        clock=lambda: bench.now,
        sleep=bench.sleep,
    )
    throttle.between()
    assert bench.now == 0


def test_training_waits_while_the_machine_is_short_of_memory() -> None:
    bench = Bench()
    bench.available = 100.0
    throttle = bench.throttle(least_free_mb=128)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        bench.now += seconds
        bench.available = 129.0 if bench.now >= 3 else 100.0

    throttle._sleep = sleep
    throttle.between()
    assert throttle.paused["memory"] == pytest.approx(3.0)
    assert max(naps) <= 0.5


def test_a_process_that_outgrew_its_limit_stops() -> None:
    bench = Bench()
    throttle = bench.throttle(memory_mb=512)
    bench.resident = 512.0
    throttle.between()
    bench.now, bench.resident = 2.0, 513.0
    with pytest.raises(TooMuchMemory, match="513 MiB"):
        throttle.between()


def test_something_newer_interrupts_at_once_and_in_the_middle_of_a_pause() -> None:
    bench = Bench()
    throttle = bench.throttle(lambda: bench.now >= 100, cpu_share=0.01)
    bench.compute(2.0)  # 200 s of sleep
    with pytest.raises(Interrupted):
        throttle.between()
    assert bench.now == pytest.approx(100, abs=0.5)
    assert throttle.paused["cpu"] == pytest.approx(98, abs=0.5)
    with pytest.raises(Interrupted):
        throttle.between()


def test_what_linux_says_is_read(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    machine = Host(tmp_path)
    assert machine.resident_mb() is None
    assert machine.available_mb() is None
    assert machine.temperature_c() is None
    put("proc/self/statm", "99999 2560 100 1 0 500 0\n")
    put("proc/meminfo", "MemTotal:  2048000 kB\nMemFree: 1 kB\nMemAvailable:  524288 kB\n")
    put("sys/class/thermal/thermal_zone0/temp", "45500\n")
    put("sys/class/thermal/thermal_zone1/temp", "61250\n")
    put("sys/class/thermal/thermal_zone2/temp", "")  # a sensor that is switched off
    assert machine.resident_mb() == 2560 * os.sysconf("SC_PAGESIZE") / (1 << 20)
    assert machine.available_mb() == 512
    assert machine.temperature_c() == 61.25


def test_this_machine_says_something() -> None:
    machine = Host()
    assert (machine.resident_mb() or 0) > 10
    assert machine.cpu_s() > 0


def test_a_process_lowers_its_own_priority(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from gradsense.agent.limits import ResourceLimits, lower_priority\n"
        "before = os.nice(0)\n"
        "lower_priority(ResourceLimits(nice=3), Path(sys.argv[1]))\n"
        "assert os.nice(0) == min(before + 3, 19), os.nice(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "proc/self/oom_score_adj").read_text() == "500"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "nowhere")], check=True)


@pytest.mark.parametrize(
    "wrong", [{"cpu_share": 0}, {"nice": 20}, {"memory_mb": 0}, {"temperature_c": float("nan")}]
)
def test_limits_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ResourceLimits.model_validate(wrong)
