"""Linear algebra on the tape: every function, to second order, and what coinciding values leave of a derivative."""

from __future__ import annotations

import array_api_compat
import array_api_compat.numpy as np_xp
import numpy as np
import pytest

import dil
from dil._base.errors import UnsupportedFunctionError
from dil_backends._tape import namespace
from linalg_cases import LINALG_CASES, LINALG_NUMPY_ONLY
from tape_helpers import check, named

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", named(LINALG_CASES))
def test_rule(case, order, xp):
    check(case, xp, order)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", named(LINALG_NUMPY_ONLY))
def test_rule_beyond_the_standard(case, order):
    check(case, np_xp, order)
