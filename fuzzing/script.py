"""A find as a file that fails when it is run."""

from __future__ import annotations

import pprint
from pathlib import Path

from fuzzing.case import Case

_TEMPLATE = '''"""{title}

    python -m fuzzing --replay {seed}     the whole network, before it was made small
"""

{network}

RULES = {rules}


if __name__ == "__main__":
    from pathlib import Path

    from fuzzing.case import Case
    from fuzzing.checks import check
    from fuzzing.network import Written

    print(f"{{Net()}}\\n{{RULES}}")
    network = Written(Path(__file__).read_text(), training={training}, seed={network_seed})
    check(Case({seed}, network, RULES, {kind!r}, {compiled}, {dynamic}))  # raises fuzzing.case.Find
'''


def write_script(case: Case, message: str, folder: Path) -> Path:
    """Write the case to ``folder``; running the file repeats the check."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"find_{case.seed}.py"
    title = message.splitlines()[0][:95].replace("\\", "/").replace('"""', "'''")
    text = _TEMPLATE.format(
        title=title,
        seed=case.seed,
        network=case.network.render().rstrip(),
        rules=pprint.pformat(case.rules, width=96),
        training=case.network.training,
        network_seed=case.network.seed,
        kind=case.kind,
        compiled=case.compiled,
        dynamic=case.dynamic,
    )
    path.write_text(text)
    return path
