"""Makes the runs of the gauntlet, audits them and prints the table; with --write it goes into docs/gauntlet.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path

from tests.gauntlet import table
from tests.gauntlet.cases import CASES, Fault
from tests.gauntlet.gauntlet import Outcome, prepare, work


def tell(outcome: Outcome) -> str:
    """One line for one case, as it is done."""
    if outcome.error:
        return outcome.error.strip().splitlines()[-1]
    if outcome.troubles:
        return f"TROUBLE: {outcome.troubles[0]}"
    if isinstance(outcome.case, Fault):
        missed = [f"{one.view}: {' '.join(one.expected)}" for one in outcome.judged if one.expected and not one.found]
        later = [str(one.view) for one in outcome.judged if one.found and not one.first]
        return "; ".join([*(f"MISSED {one}" for one in missed), *(f"not first: {one}" for one in later)]) or "found"
    return "; ".join(f"FALSE ALARM {alarm.code} ({view})" for view, alarm in outcome.false_alarms) or "silent"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gauntlet", description=__doc__)
    parser.add_argument("--cache", type=Path, help="where runs are kept; a temporary directory without it")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases by name, as in 'fork*'")
    parser.add_argument("--again", action="store_true", help="make these runs anew")
    parser.add_argument("--write", action="store_true", help="put the table into docs/gauntlet.md")
    parser.add_argument("--verbose", action="store_true", help="what was said of every miss and false alarm")
    options = parser.parse_args()
    names = [case.name for case in CASES if fnmatch(case.name, options.only)]
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as temporary:
        cache = (options.cache or Path(temporary)).absolute()
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), initializer=prepare) as pool:
            futures = {pool.submit(work, name, cache, options.again): name for name in names}
            for number, future in enumerate(as_completed(futures), 1):
                outcome = outcomes[futures[future]] = future.result()
                told = f"{number:3}/{len(names)} {outcome.seconds:5.1f} s  {outcome.case.name}: {tell(outcome)}"
                print(told, file=sys.stderr, flush=True)
                if options.verbose:
                    print(*detail(outcome), sep="\n", file=sys.stderr, flush=True)
    in_order = [outcomes[name] for name in names]
    print(table.markdown(in_order))
    if options.write:
        table.DOCUMENT.write_text(table.updated(table.DOCUMENT.read_text("utf-8"), in_order), "utf-8")
    return int(any(one.error or one.troubles or one.false_alarms for one in in_order))


def detail(outcome: Outcome) -> list[str]:
    lines = [outcome.error] if outcome.error else list(outcome.troubles)
    for view, alarm in outcome.false_alarms:
        lines.append(f"      {view}: {alarm.code} {alarm.where}: {alarm.message}")
    for one in outcome.judged:
        if not one.first and (one.expected or one.heard.alarms):
            said = [f"{finding.code} ({finding.severity}) {finding.message}" for finding in one.heard.findings]
            lines += [
                f"      {one.view}, expected {' '.join(one.expected) or 'nothing'}:",
                *(f"        {s}" for s in said),
            ]
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
