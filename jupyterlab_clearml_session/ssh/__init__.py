"""The SSH connections of an attached session. Nothing outside this folder imports `asyncssh`."""
