"""A simulator that runs the firmware's scheduling mechanism and policies on a machine without processors.

    simulator = Simulator("1x4x2", "bvt", {"mcu_us": 100}, log=True)
    tasks = simulator.domain([hog, sleeper(1_000_000, 5_000_000)], {"mcu_advance": 5})
    simulator.run(2_000_000_000)
    print(tasks[0].work, tasks[1].latencies, simulator.times(tasks[0]), simulator.log.idles)

A workload is a generator that yields commands (`Run`, `Sleep`, `Block`, `Wake`, `Yield`, `Spin`), spin
locks and barriers are in `sync`, ready-made workloads in `workloads`. Everything is in virtual ns, and
nothing is random but what a workload draws from `task.random`.
"""

from tools.schedsim.commands import FOREVER, Block, Command, Run, Sleep, Spin, Wake, Yield
from tools.schedsim.result import Idled, Log, Ran, Waited, busy_together, co_run, neglect
from tools.schedsim.simulator import POLICIES, Simulator
from tools.schedsim.sync import Barrier, SpinLock
from tools.schedsim.task import Task, Workload

__all__ = [
    "FOREVER",
    "POLICIES",
    "Barrier",
    "Block",
    "Command",
    "Idled",
    "Log",
    "Ran",
    "Run",
    "Simulator",
    "Sleep",
    "Spin",
    "SpinLock",
    "Task",
    "Waited",
    "Wake",
    "Workload",
    "Yield",
    "busy_together",
    "co_run",
    "neglect",
]
