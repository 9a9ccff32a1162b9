"""From the browser to the remote machine's Jupyter, VS Code and ports, over SSH channels."""
