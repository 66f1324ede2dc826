"""The debugger: both models at the same call, and a prompt in the candidate's frame."""
