"""A small causal transformer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class GPT(nn.Module):
    """A causal transformer, pre-norm, with tied embeddings: [samples, tokens] to logits.

    After Radford et al., Language Models are Unsupervised Multitask Learners (2019); tying after
    Press and Wolf (2017).

    Args:
        input_shape: The shape of one sample, (context,): the most tokens in a sequence.
        outputs: Tokens in the vocabulary.
        layers: Transformer blocks.
        width: Features of a token; a multiple of ``heads``.
        heads: Attention heads.
        dropout: Share of features dropped after each block's two parts, in [0, 1).

    Raises:
        ValueError: A sample is not a sequence, or ``heads`` does not divide ``width``.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(
                f"model=gpt takes sequences of tokens [context]; the data has {list(input_shape)}: "
                "try data=pydocs"
            )
        if width % heads != 0:
            raise ValueError(f"model.heads={heads} must divide model.width={width}")
        (context,) = input_shape
        self.tokens = nn.Embedding(outputs, width)
        self.positions = nn.Embedding(context, width)
        blocks = [Block(width, heads, dropout) for _ in range(layers)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs, bias=False)
        self.apply(_initialise)
        for block in blocks:
            block.quieten(layers)
        self.head.weight = self.tokens.weight

    def forward(
        self, tokens: Int[Tensor, "samples context"]
    ) -> Float[Tensor, "samples context vocabulary"]:
        """Return the logits of each next token.

        Args:
            tokens: [samples, context], int64 in [0, vocabulary).

        Returns:
            Logits [samples, context, vocabulary].
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        features = self.tokens(tokens) + self.positions(positions)
        logits: Tensor = self.head(self.norm(self.blocks(features)))
        return logits


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.mlp_out = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, features: Float[Tensor, "samples context width"]
    ) -> Float[Tensor, "samples context width"]:
        """Return the features after the block, [samples, context, width] as before it."""
        features = features + self.dropout(self.attention(self.attention_norm(features)))
        added: Tensor = self.dropout(self.mlp_out(self.mlp(self.mlp_norm(features))))
        return features + added

    def quieten(self, layers: int) -> None:
        """Shrink the block's last layers, so that a sum of ``layers`` blocks keeps its variance."""
        for last in (self.attention.out, self.mlp_out):
            nn.init.normal_(last.weight, std=0.02 / (2 * layers) ** 0.5)


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, features: Float[Tensor, "samples context width"]
    ) -> Float[Tensor, "samples context width"]:
        """Return what each token gathers from itself and the tokens before.

        Args:
            features: [samples, context, width].

        Returns:
            [samples, context, width].
        """
        projected = self.query_key_value(features)  # [samples, context, 3 * width]
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.out(gathered.transpose(1, 2).flatten(2))
        return out


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
