"""`tsi server URL`: what an inference server can do for the samplers."""

from tyro.conf import Positional


def server(address: Positional[str], served_tokenizer: str | None = None) -> int:
    """Measure what an inference server can do: seeds, log-probabilities, truncation.

    A key for it is read from the environment variable TSI_API_KEY.

    Args:
        address: URL or URL#MODEL, for example http://localhost:8000#Qwen/Qwen3-8B.
        served_tokenizer: the policy's tokenizer, a folder or hub id; by default the
            server's endpoints.
    """
    from tsi.experiments.commands.abilities_table import abilities_table
    from tsi.models.loading.download import get
    from tsi.models.loading.load_tokenizer import load_tokenizer
    from tsi.serving.connect import connect

    tokenizer = None
    if served_tokenizer is not None:
        tokenizer = load_tokenizer(get(served_tokenizer))
    policy = connect(address, tokenizer=tokenizer)
    try:
        print(abilities_table(policy))
    finally:
        policy.client.close()
    return 0
