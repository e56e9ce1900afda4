# shellcheck shell=bash
# Sourced by train.sh, test.sh and .ci/run, which set $repository: makes .venv once and keeps it right.
# Afterwards $python is its interpreter, and `hunyuan-train` lies beside it. A second start only
# compares a hash.

: "${repository:?the script that sources this file sets it}"
venv=$repository/.venv
# torch cannot link an extension against a path with a blank in it: use one without.
if [[ $venv == *[[:space:]]* ]]; then
  mkdir -p "$HOME/.cache/hunyuan_train"
  link=$HOME/.cache/hunyuan_train/venv-$(cksum <<<"$venv" | cut -d ' ' -f 1)
  ln -sfn "$venv" "$link"
  venv=$link
fi
python=$venv/bin/python

# prepare_venv FILE: install the pinned packages of FILE (requirements.txt or requirements-dev.txt).
prepare_venv() {
  local requirements=$1 hash
  hash=$(cd "$repository" && cat requirements.txt "$requirements" pyproject.toml | sha256sum)
  if is_installed "$requirements" "$hash"; then return; fi
  exec 9>"$repository/.venv.lock"
  if ! flock --nonblock 9; then
    echo "waiting for another start that is installing into .venv"
    flock 9
  fi
  if ! is_installed "$requirements" "$hash"; then install_packages "$requirements" "$hash"; fi
  exec 9>&-
}

is_installed() {
  local stamp=$venv/installed-$1
  [[ -f $stamp && $(<"$stamp") == "$2" ]] && "$python" -c '' 2>/dev/null
}

install_packages() {
  local requirements=$1 hash=$2 log=$repository/.venv.log base total
  # An installation that was interrupted may have left half a package behind: start afresh.
  if [[ -e $venv/installing ]] || ! "$python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$repository/.venv"
  fi
  if [[ ! -d $venv ]]; then
    base=$(find_python)
    echo "making .venv with $("$base" --version)"
    "$base" -m venv "$repository/.venv"
  fi
  touch "$venv/installing"
  total=$(grep -hc == "$repository/requirements.txt")
  echo "installing $requirements (once; torch is large, so this takes a few minutes)"
  if ! "$python" -m pip install --disable-pip-version-check --progress-bar off \
    -r "$repository/$requirements" 2>&1 | tee "$log" | show_progress "$total"; then
    tail -n 15 "$log" >&2
    echo "error: the installation failed; all of its output is in $log" >&2
    exit 1
  fi
  write_command
  echo "$hash" >"$venv/installed-$requirements"
  rm "$venv/installing" "$log"
}

# The command of this checkout. An editable install would take seconds, need setuptools 77 and leave
# folders of its build here.
write_command() {
  cat >"$venv/bin/hunyuan-train" <<END
#!/usr/bin/env bash
PYTHONPATH=$(printf %q "$repository")\${PYTHONPATH:+:\$PYTHONPATH}
export PYTHONPATH
exec $(printf %q "$python") -P -m hunyuan_train "\$@"
END
  chmod +x "$venv/bin/hunyuan-train"
}

# One line that is written over on a terminal; elsewhere a line for each large download.
show_progress() {
  local is_terminal=0
  if [[ -t 1 ]]; then is_terminal=1; fi
  awk -v total="$1" -v terminal="$is_terminal" '
    /^Collecting/ { count++; text = "collecting " $2 }
    /^ *Downloading/ { text = "downloading " $2 " " $3 " " $4; large = /MB|GB/ }
    /^ *Building wheel for/ { text = "building " $4; large = 1 }
    /^Installing collected/ { text = "unpacking"; large = 1 }
    terminal { printf "\r\033[K  [%d, %d pinned] %.90s", count, total, text; fflush() }
    !terminal && large { print "  " text; fflush(); large = 0 }
    END { if (terminal) printf "\r\033[K" }'
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or newer with venv is needed, for instance" \
    "\`apt-get install python3 python3-venv\`; PYTHON=/path/to/python names another one" >&2
  exit 2
}
