import subprocess

from crystal_fidelity import provenance


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


def test_a_commit_is_told_with_whether_files_differ_from_it(tmp_path):
    module = tmp_path / "src" / "package" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.write_text("a = 1\n")
    assert provenance.git_commit(module) == ""
    git(tmp_path, "init")
    assert provenance.git_commit(module) == ""  # a stranger's repository around it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    clean = provenance.git_commit(module)
    assert len(clean) == 40
    (tmp_path / "notes.txt").write_text("beside the source")
    assert provenance.git_commit(module) == clean
    module.write_text("a = 2\n")
    assert provenance.git_commit(module) == clean + "+changes"


def test_programs_hardware_and_date_are_named():
    found = provenance.versions(["numpy", "no-such-package"])
    assert set(found) == {"python", "numpy"}
    assert "thread" in provenance.hardware()
    assert provenance.today().endswith("+00:00")
