"""From a quantised model to what an accelerator runs: steps, runtime, export."""
