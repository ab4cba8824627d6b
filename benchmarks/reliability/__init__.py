"""The harnesses behind what durable training promises; `python benchmarks/reliability` runs them all (`make reliability`).

A promise is a module of this package, named in PROMISES below, with

    PROMISE = "After a power cut anywhere in a save ..."       the sentence that the README's table shows

    def check(budget: Budget) -> dict:
        world = ...                                            made once, in a temporary folder
        for case in budget.cases(all_cases()):                 the same cases in the same order at each call
            budget.judge(case.name, problem_of(case))          None where the promise held, else what was seen
        return budget.result(PROMISE, operations=57)           {promise, tried, held, seconds, failures, finished, ...}

- The Budget says how far to go: until its time is up, and one case in `every` only for a slice in the tests. What was done
  by an earlier call is passed over, so that a run that was cut off goes on where it stopped.
- `tried` counts judged cases, `held` those without a problem; `failures` keeps the first twenty, each with its name, so that
  it can be run again. What could not be tried here (no right to mount, say) goes through `budget.skip(name, why)`, never
  into `held`.
- More figures go into `result` by name; where another trainer ran through the same harness, as
  beside={"HF Trainer 5.23": {"tried": 60, "held": 35}}.
- A harness counts only if it can see: each module has `mutations()` or the like, a list of ways to break the product on
  purpose, and a test that the check fails for each of them.

Results lie in benchmarks/results/reliability.json, per promise with date, commit, machine and command. A slice of each
promise is in the tests: `check(Budget(every=50))`.
"""

PROMISES: tuple[str, ...] = ("crash_states", "corruption", "disk", "hostile", "numerics")
