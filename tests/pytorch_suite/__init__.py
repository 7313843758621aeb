"""hanops' ops and modules held to what torch asks of its own: `pytest tests/pytorch_suite --counts`.

torch's wheel has the machinery (OpInfo, ModuleInfo, composite compliance, optests), not the tests that use it. They are
written anew here, under the names of torch's classes and tests. `op_db.py` and `module_db.py` say what is tested, and
`expected.py` what is left out.
"""
