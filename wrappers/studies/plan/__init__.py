"""What a study is to try: its trials, and what they are run on."""
