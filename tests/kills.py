"""Ends a copy of this process at a chosen step of what it does to a folder, as SIGKILL would."""

import os
import sys
import traceback

CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "os.listdir")
KILLED = 99


def killed_at(point, folder, action):
    """Does `action()` in a forked copy of this process that is gone just before its step number `point` in `folder`.

    True where it got there, False where the action was over before. Steps are what Python tells audit hooks:
    opening, making, renaming and removing files; nothing that was buffered is written any more.
    """
    child = os.fork()
    if not child:
        left = point

        def count(event, arguments):
            nonlocal left
            if event in CHANGES and any(str(folder) in str(argument) for argument in arguments):
                if not left:
                    os._exit(KILLED)
                left -= 1

        sys.addaudithook(count)
        failed = 1
        try:
            action()
            failed = 0
        finally:
            if failed:
                traceback.print_exc()
            os._exit(failed)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), "the action itself failed"
    return code == KILLED


def every_kill(folder, action, prepare, check, most=500):
    """Prepares, kills the action one step later each time, and checks, until it is through; how often it was killed."""
    for point in range(most):
        prepare()
        killed = killed_at(point, folder, action)
        check()
        if not killed:
            return point
    raise AssertionError(f"still not through after {most} steps")
