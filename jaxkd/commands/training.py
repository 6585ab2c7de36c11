"""Train the teacher and the students of a config, or resume where the same command stopped.

    jaxkd train --config configs/digits.py:simkd --workdir runs/digits-simkd

Any field can be set on the command line: --config.student.learning_rate=0.1
With --report the run ends in a report of the student: WORKDIR/report/report.html, .md and .json.
With --summary in place of --workdir it only prints what it would train.

On SIGTERM the run saves a checkpoint and exits with status 75, on Ctrl-C with 130; the same command
resumes. A second signal ends the process at once.
"""

import os
import pathlib
import sys
import time
import traceback
from typing import NoReturn

from jaxkd.commands.train import CONSOLE, STOP, say
from jaxkd.errors import needed_by

with needed_by("jaxkd train"):
  from absl import app, flags, logging
  from ml_collections import config_flags

  from jaxkd.commands import parsed, wants_help
  from jaxkd.errors import ConfigError, DiskError, one_line
  from jaxkd.experiment import config, overview
  from jaxkd.experiment import run as experiment
  from jaxkd.runtime import compilation, devices, memory, processes
  from jaxkd.runtime.signals import Interrupted

FLAGS = flags.FlagValues()

# Unlocked, so that an unknown field reaches `check_config`, which names the nearest one.
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Config file, as FILE.py:METHOD.",
  lock_config=False,
  accept_new_attributes=True,
  flag_values=FLAGS,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints and results of the run go.", flag_values=FLAGS
)
_SUMMARY = flags.DEFINE_bool(
  "summary",
  False,
  "Print the networks and which of their stages are compared; train nothing.",
  flag_values=FLAGS,
)
_EXTEND = flags.DEFINE_bool(
  "extend",
  False,
  "Go on to more epochs of the finished run in --workdir, as if planned so.",
  flag_values=FLAGS,
)
_REPORT = flags.DEFINE_bool(
  "report",
  False,
  "Write the report of the student to WORKDIR/report when the run is finished.",
  flag_values=FLAGS,
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Run as one of several processes; see the README on several hosts.",
  flag_values=FLAGS,
)
_MPI = flags.DEFINE_bool(
  "mpi", False, "The same, as any mpirun starts them; needs mpi4py.", flag_values=FLAGS
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of the first process.", flag_values=FLAGS
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many processes take part.", flag_values=FLAGS
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this one is, from 0.", flag_values=FLAGS
)
flags.mark_flag_as_required("config", FLAGS)


def main(argv: list[str]) -> None:
  """Run the experiment that the flags name."""
  if len(argv) > 1:
    raise ConfigError(f"unexpected argument {argv[1]!r}: every setting is a --flag")
  settings = _CONFIG.value
  config.check_config(settings)
  settings.lock()
  logging.set_verbosity(logging.WARNING)  # orbax logs every step of every save
  if _SUMMARY.value:
    _say_method(settings.method.name)
    overview.overview(settings, CONSOLE)
    return
  for flag in (_NUM_PROCESSES, _PROCESS_ID):
    if flag.value is not None and not _are_several():
      raise ConfigError(f"--{flag.name}={flag.value}: expected --coordinator=HOST:PORT with it")
  if _WORKDIR.value is None:
    raise ConfigError("--workdir must be given: where checkpoints and results of the run go")
  compilation.enable_compilation_cache()
  memory.tune_malloc()
  devices.set_cpu_devices(settings.cpu_devices, settings.batch_size)
  if _are_several():
    processes.join_processes(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, mpi=_MPI.value
    )
    processes.on_abort(_end_alone)
  CONSOLE.quiet = not processes.is_first_process()
  _say_method(settings.method.name)
  try:
    workdir = pathlib.Path(_WORKDIR.value)
    experiment.run(settings, workdir, CONSOLE, stop=STOP, extend=_EXTEND.value)
    if _REPORT.value and processes.is_first_process():
      say(f"report: {_report(workdir)}")
  except Interrupted as where:
    say(f"stopped by {STOP.requested_by} in {where}, saved; the same command goes on")
    sys.exit(STOP.status)
  except Exception as error:
    if processes.is_single_process():
      raise
    # A normal exit would wait for the other processes, which may be waiting for this one.
    if processes.is_lost_process_error(error):
      _end_alone()
    _end(_last_words(error))


def _report(workdir: pathlib.Path) -> pathlib.Path:
  """Write the report of a finished run; return its page."""
  # Imported here: a run without a report does not need what draws it.
  from jaxkd.experiment.student_report import write_report_of_run

  return write_report_of_run(workdir)[0]


def _are_several() -> bool:
  """Check whether the flags make this one of several processes."""
  return bool(_DISTRIBUTED.value or _MPI.value or _COORDINATOR.value)


def _say_method(method: str) -> None:
  """Print the method that a config file chose, where --config names none."""
  file, _, argument = config_flags.get_config_filename(FLAGS["config"]).partition(":")
  if not argument:
    say(f"method {method}, as --config={file} names none; another is --config={file}:METHOD")


def _last_words(error: Exception) -> str:
  if isinstance(error, ConfigError | DiskError):
    if processes.is_first_process():
      time.sleep(3)  # the others print the error before this exit aborts them
    return _one_line(error)
  return "".join(traceback.format_exception(error)).rstrip()


def _end(line: str) -> NoReturn:
  """End this process at once, without waiting for its threads or for other processes."""
  os.write(2, f"{line}\n".encode())
  os._exit(1)


def _end_alone() -> NoReturn:
  """End one of several processes after another one died."""
  if STOP.requested:  # as the other one was, which was quicker
    os._exit(STOP.status)
  _end(processes.LOST_PROCESS)


def parse_flags(argv: list[str]) -> list[str]:
  """Return the arguments that are no flags; a wrong flag or config raises a ConfigError."""
  try:
    arguments = parsed(FLAGS, argv)
    # The file is read, or found unreadable, when a field is first read.
    _ = _CONFIG.value.method
  except OSError as error:
    raise ConfigError(f"--config: {str(error).splitlines()[-1].strip()}") from error
  except (AttributeError, KeyError) as error:
    reason = " ".join(str(error.args[0]).split())
    raise ConfigError(f"a field that the config does not have: {reason}") from error
  except flags.Error as error:
    cause = _config_error(error)
    if cause is None and "\n" in str(error):
      raise  # a bug in the config file, with its traceback
    raise cause or ConfigError(str(error)) from error
  return arguments


def _config_error(error: BaseException | None) -> ConfigError | None:
  """Return the ConfigError of a config file, which the flag's error quotes with a traceback."""
  while error is not None:
    # ml_collections raises a copy of it, whose message is the whole traceback.
    if isinstance(error, ConfigError) and "\n" not in str(error):
      return error
    error = error.__cause__ or error.__context__
  return None


def run(arguments: list[str]) -> int:
  """Run `main`; a wrong command ends in a ConfigError, without a traceback."""
  if wants_help(sys.modules[__name__], arguments):
    return 0
  # Flags of the config's fields are found in the arguments of the process.
  sys.argv[:] = [sys.argv[0], *arguments]
  try:
    app.run(main, flags_parser=parse_flags)
  except DiskError as error:
    # At a normal exit, threads of orbax wait five minutes for failed writes.
    sys.stdout.flush()
    _end(_one_line(error))
  return 0


def _one_line(error: ConfigError | DiskError) -> str:
  return f"error: {one_line(error)}"
