"""Suites hold tasks that exist."""

from __future__ import annotations

from qsm.bench.suites import SUITES, tasks_of


def test_suites_hold_tasks_that_exist() -> None:
    from envs.tasks import check_task

    for suite in SUITES.values():
        assert len(set(suite.tasks)) == len(suite.tasks)
        for task in suite.tasks:
            check_task(task)
    assert len(SUITES["dmc28"].tasks) == 28
    assert tasks_of(("cheetah-run", "paper", "cheetah-run"))[:2] == ("cheetah-run", "cartpole-balance")
