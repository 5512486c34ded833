"""Every family in miniature: real classes, configuration, files, and few random weights.

Loading, training, saving and loading again use the same code as for real models. Layers are 32
wide, images 32 by 32 with 16 patches or fewer. Special features of a family are kept: bidirectional
attention over an image, sliding windows, states instead of attention, images cut into tiles, an
encoder next to the decoder.
"""

from collections.abc import Callable
from typing import Any

from runyard.trainer.models.video import StandInVideoProcessor, install_video_stand_in

SIDE = 32  # of images, in pixels
WORDS = "which digit is this locate the seven answer question about picture with one json object"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if "
    "c['type'] == 'image' %}@IMAGE@{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% "
    "endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = [
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>", "<|vision_start|>",
    "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<fake_token_around_image>", "<global-img>",
    "<end_of_utterance>", "<start_of_image>", "<end_of_image>", "<image_soft_token>", "<img>",
    "</img>", "<IMG_CONTEXT>", "<video>", "<|video|>", "<|audio|>", "<start_of_audio>",
    "<end_of_audio>",
]  # fmt: skip


def make_tokenizer(**named: str) -> Any:
    """Return a byte-level tokenizer with every family's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(SPECIALS) + 40,
        special_tokens=SPECIALS,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        **({"extra_special_tokens": named} if named else {}),
    )


def make_chat_template(image_text: str) -> str:
    """Return the chat template with a family's token for an image."""
    return TEMPLATE.replace("@IMAGE@", image_text)


def make_text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Return a language model's configuration."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    } | more


def make_vision_config(**more: Any) -> dict[str, Any]:
    """Return a vision encoder's configuration: four patches per image."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 16,
    } | more


def siglip(**more: Any) -> dict[str, Any]:
    return make_vision_config(model_type="siglip_vision_model", vision_use_head=False, **more)


def squares(side: int = SIDE) -> dict[str, int]:
    return {"height": side, "width": side}


def make_idefics3() -> tuple[Any, Any]:
    import transformers as t

    return _idefics(
        t.Idefics3Config, t.Idefics3ForConditionalGeneration, t.Idefics3ImageProcessorPil
    )


def make_smolvlm() -> tuple[Any, Any]:
    """Its processor requires a video part."""
    import transformers as t

    return _idefics(
        t.SmolVLMConfig,
        t.SmolVLMForConditionalGeneration,
        t.SmolVLMImageProcessorPil,
        StandInVideoProcessor(),
    )


def _idefics(config: Any, model: Any, images: Any, *video: Any) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = make_tokenizer()
    made = config(
        text_config=make_text_config(tokenizer, model_type="llama"),
        vision_config=make_vision_config(patch_size=8),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    longest = {"longest_edge": SIDE}
    processor = (t.SmolVLMProcessor if video else t.Idefics3Processor)(
        images(size=longest, max_image_size=longest, do_image_splitting=False),
        tokenizer,
        *video,
        image_seq_len=4,
        chat_template=make_chat_template("<image>"),
    )
    return model(made), processor


def make_qwen2_5_vl() -> tuple[Any, Any]:
    """The first layer of its vision encoder attends within windows."""
    import transformers as t

    return _qwen(
        t.Qwen2_5_VLConfig,
        t.Qwen2_5_VLForConditionalGeneration,
        t.Qwen2_5_VLProcessor,
        of_text={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 2, 2],
            }
        },
        of_vision={"window_size": 16, "fullatt_block_indexes": [1]},
    )


def make_qwen3_vl() -> tuple[Any, Any]:
    """Features of an early vision layer are added to early layers of the language model."""
    import transformers as t

    return _qwen(
        t.Qwen3VLConfig,
        t.Qwen3VLForConditionalGeneration,
        t.Qwen3VLProcessor,
        of_text={
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 2, 2],
            },
        },
        of_vision={"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    )


def make_qwen3_5() -> tuple[Any, Any]:
    """One layer keeps a state instead of attending."""
    import transformers as t

    return _qwen(
        t.Qwen3_5Config,
        t.Qwen3_5ForConditionalGeneration,
        t.Qwen3VLProcessor,
        of_text={
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        of_vision={"num_position_embeddings": 16},
    )


def _qwen(
    config: Any, model: Any, processor: Any, *, of_text: Any, of_vision: Any
) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = make_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    made = config(
        text_config=make_text_config(tokenizer, **of_text),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
            "out_hidden_size": 32,
        }
        | of_vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    images = t.Qwen2VLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=1,
        min_pixels=SIDE * SIDE,
        max_pixels=SIDE * SIDE,
    )
    image_text = "<|vision_start|><|image_pad|><|vision_end|>"
    return model(made), processor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=StandInVideoProcessor(),
        chat_template=make_chat_template(image_text),
    )


def make_internvl() -> tuple[Any, Any]:
    import transformers as t

    tokenizer = make_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = t.InternVLConfig(
        text_config=make_text_config(tokenizer, model_type="qwen2"),
        vision_config=make_vision_config(patch_size=8),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    processor = t.InternVLProcessor(
        image_processor=t.GotOcr2ImageProcessorPil(size=squares(), min_patches=1, max_patches=2),
        tokenizer=tokenizer,
        video_processor=StandInVideoProcessor(),
        image_seq_length=4,
        chat_template=make_chat_template("<IMG_CONTEXT>\n"),
    )
    return t.InternVLForConditionalGeneration(config), processor


def make_llava() -> tuple[Any, Any]:
    import transformers as t

    tokenizer = make_tokenizer()
    config = t.LlavaConfig(
        text_config=make_text_config(tokenizer, model_type="llama"),
        vision_config=siglip(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = t.LlavaProcessor(
        image_processor=t.SiglipImageProcessorPil(size=squares()),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=make_chat_template("<image>"),
    )
    return t.LlavaForConditionalGeneration(config), processor


def make_llava_next() -> tuple[Any, Any]:
    """Uses the full image and its tiles.

    Its vision encoder has a token for the class, which is left out.
    """
    import transformers as t

    tokenizer = make_tokenizer()
    tiles = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    config = t.LlavaNextConfig(
        text_config=make_text_config(tokenizer, model_type="mistral"),
        vision_config=make_vision_config(model_type="clip_vision_model"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=tiles,
        image_seq_length=4,
    )
    processor = t.LlavaNextProcessor(
        image_processor=t.LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size=squares(), image_grid_pinpoints=tiles
        ),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=make_chat_template("<image>"),
    )
    return t.LlavaNextForConditionalGeneration(config), processor


def make_llava_onevision() -> tuple[Any, Any]:
    import transformers as t

    tokenizer = make_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    tiles = [[SIDE, SIDE], [SIDE, 2 * SIDE]]
    config = t.LlavaOnevisionConfig(
        text_config=make_text_config(tokenizer, model_type="qwen2"),
        vision_config=siglip(),
        image_token_index=ids("<image>"),
        video_token_index=ids("<video>"),
        image_grid_pinpoints=tiles,
    )
    processor = t.LlavaOnevisionProcessor(
        image_processor=t.LlavaOnevisionImageProcessorPil(
            size=squares(), image_grid_pinpoints=tiles
        ),
        tokenizer=tokenizer,
        video_processor=StandInVideoProcessor(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=make_chat_template("<image>"),
    )
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def make_gemma3() -> tuple[Any, Any]:
    """A window of 16 tokens in its first layer, and bidirectional attention within an image."""
    import transformers as t

    tokenizer = make_tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    ids = tokenizer.convert_tokens_to_ids
    config = t.Gemma3Config(
        text_config=make_text_config(
            tokenizer,
            head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config=siglip(),
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )
    processor = t.Gemma3Processor(
        image_processor=t.Gemma3ImageProcessorPil(size=squares()),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=make_chat_template("<start_of_image>"),
    )
    return t.Gemma3ForConditionalGeneration(config), processor


def make_gemma4() -> tuple[Any, Any]:
    """As the small sizes: per-layer embeddings, shared keys in last layers, an audio encoder."""
    import transformers as t

    tokenizer = make_tokenizer(
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
        boa_token="<start_of_audio>",
        eoa_token="<end_of_audio>",
        audio_token="<|audio|>",
    )
    ids = tokenizer.convert_tokens_to_ids
    config = t.Gemma4Config(
        text_config=make_text_config(
            tokenizer,
            head_dim=16,
            global_head_dim=32,
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            sliding_window=16,
            final_logit_softcapping=30.0,
            vocab_size_per_layer_input=len(tokenizer),
            hidden_size_per_layer_input=8,
        ),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "pooling_kernel_size": 2,
            "patch_size": 4,
            "position_embedding_size": 64,
        },
        audio_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [4, 4],
            "output_proj_dims": 32,
        },
        boi_token_id=ids("<start_of_image>"),
        eoi_token_id=ids("<end_of_image>"),
        image_token_id=ids("<image_soft_token>"),
        video_token_id=ids("<|video|>"),
        boa_token_id=ids("<start_of_audio>"),
        eoa_token_index=ids("<end_of_audio>"),
        audio_token_id=ids("<|audio|>"),
    )
    processor = t.Gemma4Processor(
        feature_extractor=t.Gemma4AudioFeatureExtractor(),
        image_processor=t.Gemma4ImageProcessorPil(
            patch_size=4, pooling_kernel_size=2, max_soft_tokens=70
        ),
        tokenizer=tokenizer,
        video_processor=StandInVideoProcessor(),
        image_seq_length=70,
        chat_template=make_chat_template("<image_soft_token>"),
    )
    return t.Gemma4ForConditionalGeneration(config), processor


def make_paligemma() -> tuple[Any, Any]:
    """PaliGemma 2: no chat template, token types on the answer, a bidirectional prompt, location
    tokens.
    """
    import transformers as t

    tokenizer = make_tokenizer()
    images = t.SiglipImageProcessorPil(size=squares())
    images.image_seq_length = 4
    processor = t.PaliGemmaProcessor(images, tokenizer)  # adds the location tokens
    config = t.PaliGemmaConfig(
        text_config=make_text_config(
            tokenizer, model_type="gemma2", head_dim=16, sliding_window=16, query_pre_attn_scalar=16
        ),
        vision_config=siglip(projection_dim=32),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    return t.PaliGemmaForConditionalGeneration(config), processor


def make_florence2() -> tuple[Any, Any]:
    """An encoder reads image and question, a decoder answers.

    No chat template, but location tokens. Without dropout, for comparisons.
    """
    import transformers as t

    tokenizer = make_tokenizer(image_token="<image>")
    tokenizer.add_tokens([f"<loc_{number}>" for number in range(1000)])
    config = t.Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "decoder_start_token_id": tokenizer.eos_token_id,
            "forced_bos_token_id": tokenizer.bos_token_id,
            "dropout": 0.0,
        },
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 4],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 4,
            "projection_dim": 32,
            "drop_path_rate": 0.0,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = t.CLIPImageProcessorPil(size=squares(), crop_size=squares())
    images.image_seq_length = 5  # the mean of all patches, and four patches
    return t.Florence2ForConditionalGeneration(config), t.Florence2Processor(images, tokenizer)


MINIATURES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "idefics3": make_idefics3,
    "smolvlm": make_smolvlm,
    "qwen2_5_vl": make_qwen2_5_vl,
    "qwen3_vl": make_qwen3_vl,
    "qwen3_5": make_qwen3_5,
    "internvl": make_internvl,
    "llava": make_llava,
    "llava_next": make_llava_next,
    "llava_onevision": make_llava_onevision,
    "gemma3": make_gemma3,
    "gemma4": make_gemma4,
    "paligemma": make_paligemma,
    "florence2": make_florence2,
}


def make(model_type: str, *, seed: int = 0) -> tuple[Any, Any]:
    """Return a model with random weights from ``seed``, and its processor.

    The library's own first weights are too small for layers this narrow, and some (Gemma 3's
    projector) are zero, which would hide errors before them from a test. So noise is added to
    all.
    """
    import torch

    install_video_stand_in()
    torch.manual_seed(seed)
    model, processor = MINIATURES[model_type]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model, processor
