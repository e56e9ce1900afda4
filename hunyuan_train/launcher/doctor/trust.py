"""Collects the host keys of all hosts at once, and shows them.

ssh itself notes each key where the user's configuration says, also behind a jump host. A key that
is known and has changed is never replaced.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hunyuan_train.config.launch_schema import LaunchConfig
from hunyuan_train.launcher.cluster.hosts import Host
from hunyuan_train.launcher.cluster.ssh import Trouble, explain, ssh_options

TRUST_SECONDS = 15.0
SERVER_KEY = re.compile(r"Server host key: (\S+) (SHA256:\S+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class HostKey:
    """The key that a host showed."""

    host: Host
    fingerprint: str  # type and hash, as `ssh-keygen -l` prints them; empty: it was not reached
    is_new: bool
    trouble: Trouble | None


def collect_keys(hosts: Sequence[Host], launch: LaunchConfig) -> list[HostKey]:
    """Ask every host for its key, and let ssh note those that are new."""

    async def collect() -> list[HostKey]:
        return await asyncio.gather(*(_collect_key(host, launch) for host in hosts))

    return asyncio.run(collect())


async def _collect_key(host: Host, launch: LaunchConfig) -> HostKey:
    # The first value of an option counts, and -v shows the key.
    words = ["-v", "-o", "StrictHostKeyChecking=accept-new", *ssh_options(launch)]
    process = await asyncio.create_subprocess_exec(
        *("ssh", *words, "--", host.address, "true"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, stderr = await asyncio.wait_for(process.communicate(), TRUST_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        trouble = Trouble("ssh", f"no answer in {TRUST_SECONDS:g} s", "fix the network to it")
        return HostKey(host=host, fingerprint="", is_new=False, trouble=trouble)
    text = stderr.decode(errors="replace")
    key = SERVER_KEY.search(text)
    words_for_user = "\n".join(line for line in text.splitlines() if not line.startswith("debug"))
    return HostKey(
        host=host,
        fingerprint=" ".join(key.groups()) if key else "",
        is_new="Permanently added" in text,
        trouble=explain(words_for_user, host, launch) if process.returncode else None,
    )
