"""Loss: mean negative log-likelihood of the assistant's tokens."""

from cpift.metrics.metric import NATS, Metric, Scoring

LOSS = Metric(
    name="loss",
    label="loss, nats a token",
    summary="mean negative log-likelihood of the assistant's tokens, in nats; lower is better",
    rows="none beside the conversation",
    scoring=Scoring.LOSS,
    axis="loss, nats",
    unit=NATS,
    higher_is_better=False,
    by_tokens=True,
    card_type="loss",
)
