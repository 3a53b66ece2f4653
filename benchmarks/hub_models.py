"""Small forms of the backbone classes of keras_hub, made offline with random weights.

Sizes are small and, where the class allows it, unlike each other, so that one is not taken for
another. Every function takes `keras_hub.models` and returns a backbone.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Make = Callable[[Any], Any]

#: By how users look for them.
FAMILIES: dict[str, tuple[str, ...]] = {
    "convolution": tuple(
        """CSPNetBackbone DenseNetBackbone EfficientNetBackbone HGNetV2Backbone MobileNetBackbone
        MobileNetV5Backbone ResNetBackbone VGGBackbone XceptionBackbone""".split()
    ),
    "images": tuple(
        """CLIPVisionEncoder DINOV2Backbone DINOV3Backbone DeiTBackbone MetaCLIP2VisionEncoder
        MiTBackbone SigLIPVisionEncoder SwinTransformerBackbone ViTBackbone ViTDetBackbone
        VideoPrismBackbone""".split()
    ),
    "detection and segmentation": tuple(
        """BASNetBackbone DFineBackbone DeepLabV3Backbone DepthAnythingBackbone
        PARSeqBackbone RetinaNetBackbone SAMBackbone
        SAM3PromptableConceptBackbone SegFormerBackbone""".split()
    ),
    "text encoder": tuple(
        """AlbertBackbone BertBackbone CLIPTextEncoder DebertaV3Backbone DistilBertBackbone
        ESM2Backbone ElectraBackbone FNetBackbone MetaCLIP2TextEncoder RobertaBackbone
        RoformerV2Backbone SigLIPTextEncoder XLMRobertaBackbone XLNetBackbone""".split()
    ),
    "encoder and decoder": tuple(
        """BartBackbone EdRecBackbone MoonshineBackbone T5Backbone T5GemmaBackbone T5Gemma2Backbone
        WhisperBackbone""".split()
    ),
    "text decoder": tuple(
        """BloomBackbone FalconBackbone GPT2Backbone GPTNeoXBackbone Gemma3Backbone
        Gemma3nBackbone Gemma4Backbone GemmaBackbone Llama3Backbone LlamaBackbone MistralBackbone
        OPTBackbone Phi3Backbone Qwen2Backbone Qwen3Backbone Qwen3_5Backbone RWKV7Backbone
        SmolLM3Backbone""".split()
    ),
    "mixture of experts": tuple(
        """GptOssBackbone MixtralBackbone Qwen3MoeBackbone Qwen3_5MoeBackbone
        QwenMoeBackbone""".split()
    ),
    "images and text": tuple(
        """BLIP2Backbone CLIPBackbone MetaCLIP2Backbone PaliGemmaBackbone SigLIPBackbone""".split()
    ),
    "diffusion": ("FluxBackbone", "StableDiffusion3Backbone"),
}

TEXT = {
    "vocabulary_size": 23,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 24,
    "intermediate_dim": 20,
}
SHORT = TEXT | {"max_sequence_length": 9}
GROUPED = {
    "vocabulary_size": 23,
    "num_layers": 2,
    "num_query_heads": 6,
    "num_key_value_heads": 3,
    "hidden_dim": 24,
    "intermediate_dim": 20,
}
GEMMA = GROUPED | {"head_dim": 8}
EXPERTS = GROUPED | {"num_experts": 3, "top_k": 2}
IMAGE = {"image_shape": (32, 32, 3)}
PATCHES = IMAGE | {
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 24,
    "intermediate_dim": 20,
}
CLIP_TEXT = SHORT | {"embedding_dim": 24}


def library(name: str = "models") -> Any:
    """A part of keras_hub: the installed one, not the benchmark of that name next to this file."""
    path = sys.path[:]
    sys.path[:] = [p for p in path if Path(p).resolve() != HERE]
    try:
        return importlib.import_module(f"keras_hub.{name}")
    finally:
        sys.path[:] = path


def families() -> dict[str, str]:
    """The family of each class."""
    return {name: family for family, names in FAMILIES.items() for name in names}


def backbones() -> list[str]:
    """Names of all backbone classes of the installed keras_hub but those to derive from."""
    models = library()
    bases = (models.Backbone, models.FeaturePyramidBackbone)
    found: dict[type, str] = {}
    for name in sorted(dir(models)):
        cls = getattr(models, name)
        if inspect.isclass(cls) and issubclass(cls, models.Backbone) and cls not in bases:
            found.setdefault(cls, name)
    return list(found.values())


def make(name: str) -> Any:
    """A small backbone of this class.

    Raises:
        KeyError: nobody wrote down sizes for it.
    """
    models = library()
    if name in ARGUMENTS:
        return getattr(models, name)(**ARGUMENTS[name])
    return MAKERS[name](models)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "AlbertBackbone": SHORT | {"embedding_dim": 10},
    "BartBackbone": SHORT,
    "BertBackbone": SHORT,
    "BloomBackbone": TEXT,
    "CLIPTextEncoder": CLIP_TEXT,
    "CLIPVisionEncoder": PATCHES,
    "CSPNetBackbone": {
        "stem_filters": 12,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stackwise_strides": 2,
        "stackwise_depth": [1, 2],
        "stackwise_num_filters": [16, 20],
        "bottle_ratio": (0.5, 1.0),
        "block_ratio": (1.0, 0.5),
        "expand_ratio": (2.0, 1.0),
        "block_type": "dark_block",
        "stage_type": "csp",
        "down_growth": True,
        "stem_padding": "same",
        **IMAGE,
    },
    "DINOV2Backbone": PATCHES | {"num_register_tokens": 2, "position_embedding_shape": (32, 32)},
    "DINOV3Backbone": PATCHES | {"hidden_dim": 32},
    "DebertaV3Backbone": SHORT | {"bucket_size": 4},
    "DeiTBackbone": PATCHES,
    "DenseNetBackbone": {"stackwise_num_repeats": [2, 3], "growth_rate": 6, **IMAGE},
    "DistilBertBackbone": SHORT,
    "ESM2Backbone": SHORT,
    "EdRecBackbone": {
        "vocab_size": 23,
        "num_layers_enc": 2,
        "num_layers_dec": 2,
        "hidden_dim": 24,
        "intermediate_dim": 20,
        "num_heads": 4,
    },
    "EfficientNetBackbone": {
        "stackwise_kernel_sizes": [3, 3, 5],
        "stackwise_num_repeats": [1, 2, 2],
        "stackwise_input_filters": [8, 16, 24],
        "stackwise_output_filters": [16, 24, 32],
        "stackwise_expansion_ratios": [1, 4, 4],
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.25, 0.25],
        "stackwise_strides": [1, 2, 2],
        "stackwise_block_types": ["fused", "unfused", "unfused"],
        "stackwise_force_input_filters": [0, 0, 0],
        "stackwise_nores_option": [False, False, False],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "num_features": 40,
    },
    "ElectraBackbone": {
        "vocab_size": 23,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 24,
        "embedding_dim": 10,
        "intermediate_dim": 20,
        "max_sequence_length": 9,
    },
    "FNetBackbone": {k: v for k, v in SHORT.items() if k != "num_heads"},
    "FalconBackbone": {k: v for k, v in TEXT.items() if k != "num_heads"}
    | {"num_attention_heads": 4},
    "FluxBackbone": {
        "input_channels": 12,
        "hidden_size": 48,
        "mlp_ratio": 2.0,
        "num_heads": 4,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 4, 4],
        "theta": 10_000,
        "use_bias": True,
        "guidance_embed": True,
        "image_shape": (8, 12),
        "text_shape": (7, 12),
        "image_ids_shape": (8, 3),
        "text_ids_shape": (7, 3),
        "y_shape": (12,),
    },
    "GPT2Backbone": SHORT,
    "GPTNeoXBackbone": SHORT | {"rotary_percentage": 0.67},
    "Gemma3Backbone": GEMMA | {"image_size": 16},
    "Gemma3nBackbone": {
        "text_vocab_size": 23,
        "text_hidden_size": 24,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "intermediate_size": [20, 20],
        "hidden_activation": "gelu_approximate",
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 4,
        "rope_theta": 10000.0,
        "max_position_embeddings": 16,
        "vocab_size_per_layer_input": 23,
        "hidden_size_per_layer_input": 5,
        "altup_num_inputs": 2,
        "laurel_rank": 7,
    },
    "Gemma4Backbone": GEMMA | {"image_size": 16},
    "GemmaBackbone": GEMMA,
    "GptOssBackbone": EXPERTS | {"head_dim": 8},
    "HGNetV2Backbone": {
        "depths": [1, 1],
        "embedding_size": 12,
        "hidden_sizes": [20, 28],
        "stem_channels": [3, 8, 12],
        "hidden_act": "relu",
        "use_learnable_affine_block": True,
        "stackwise_stage_filters": [(12, 10, 20, 1, 2, 3), (20, 14, 28, 1, 2, 3)],
        "apply_downsample": [False, True],
        "use_lightweight_conv_block": [False, True],
        "image_shape": (64, 64, 3),
    },
    "Llama3Backbone": GROUPED,
    "LlamaBackbone": GROUPED,
    "MetaCLIP2TextEncoder": CLIP_TEXT,
    "MetaCLIP2VisionEncoder": PATCHES,
    "MiTBackbone": {
        "layerwise_depths": [1, 2],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "hidden_dims": [12, 20],
        **IMAGE,
    },
    "MistralBackbone": GROUPED,
    "MixtralBackbone": EXPERTS,
    "MobileNetBackbone": {
        "stackwise_expansion": [[20, 28], [36, 44]],
        "stackwise_num_blocks": [2, 2],
        "stackwise_num_filters": [[8, 8], [12, 12]],
        "stackwise_kernel_size": [[3, 3], [5, 5]],
        "stackwise_num_strides": [[2, 1], [2, 1]],
        "stackwise_se_ratio": [[None, None], [0.25, 0.25]],
        "stackwise_activation": [["relu", "relu"], ["hard_swish", "hard_swish"]],
        "stackwise_padding": [[1, 1], [2, 2]],
        "output_num_filters": 40,
        "depthwise_filters": 8,
        "depthwise_stride": 1,
        "depthwise_residual": True,
        "last_layer_filter": 40,
        "squeeze_and_excite": 0.5,
        "input_num_filters": 8,
        **IMAGE,
    },
    "MobileNetV5Backbone": {
        "stackwise_block_types": [["er"], ["uir", "uir"]],
        "stackwise_num_blocks": [1, 2],
        "stackwise_num_filters": [[12], [20, 20]],
        "stackwise_strides": [[2], [2, 1]],
        "stackwise_act_layers": [["relu"], ["relu", "relu"]],
        "stackwise_exp_ratios": [[4.0], [3.0, 3.0]],
        "stackwise_se_ratios": [[0.0], [0.0, 0.0]],
        "stackwise_dw_kernel_sizes": [[0], [5, 5]],
        "stackwise_dw_start_kernel_sizes": [[0], [0, 0]],
        "stackwise_dw_end_kernel_sizes": [[0], [0, 0]],
        "stackwise_exp_kernel_sizes": [[3], [0, 0]],
        "stackwise_pw_kernel_sizes": [[1], [0, 0]],
        "stackwise_num_heads": [[0], [0, 0]],
        "stackwise_key_dims": [[0], [0, 0]],
        "stackwise_value_dims": [[0], [0, 0]],
        "stackwise_kv_strides": [[0], [0, 0]],
        "stackwise_use_cpe": [[False], [False, False]],
        "stem_size": 8,
        "use_msfa": False,
        **IMAGE,
    },
    "MoonshineBackbone": {
        "vocabulary_size": 23,
        "filter_dim": 24,
        "encoder_num_layers": 2,
        "decoder_num_layers": 2,
        "hidden_dim": 24,
        "intermediate_dim": 20,
        "encoder_num_heads": 4,
        "decoder_num_heads": 4,
    },
    "OPTBackbone": SHORT,
    "PaliGemmaBackbone": GEMMA
    | {
        "image_size": 16,
        "vit_patch_size": 8,
        "vit_num_heads": 4,
        "vit_hidden_dim": 16,
        "vit_num_layers": 2,
        "vit_intermediate_dim": 18,
    },
    "Phi3Backbone": GROUPED,
    "Qwen2Backbone": GROUPED,
    "Qwen3Backbone": GEMMA,
    "Qwen3MoeBackbone": EXPERTS | {"head_dim": 8, "moe_intermediate_dim": 14},
    "Qwen3_5Backbone": GEMMA
    | {
        "layer_types": ["linear_attention", "full_attention"],
        "partial_rotary_factor": 0.5,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 5,
    },
    "Qwen3_5MoeBackbone": {k: v for k, v in GEMMA.items() if k != "intermediate_dim"}
    | {
        "moe_intermediate_dim": 14,
        "shared_expert_intermediate_size": 20,
        "num_experts": 3,
        "top_k": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "partial_rotary_factor": 0.5,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 5,
    },
    "QwenMoeBackbone": EXPERTS | {"moe_intermediate_dim": 14, "shared_expert_intermediate_dim": 18},
    "RWKV7Backbone": {
        "hidden_size": 24,
        "head_size": 6,
        "num_layers": 2,
        "vocabulary_size": 23,
        "intermediate_dim": 20,
        "gate_lora": 5,
        "mv_lora": 7,
        "aaa_lora": 9,
        "decay_lora": 11,
        "dtype": "float32",
    },
    "ResNetBackbone": {
        "input_conv_filters": [12],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 20],
        "stackwise_num_blocks": [2, 2],
        "stackwise_num_strides": [1, 2],
        "block_type": "bottleneck_block",
        "image_shape": (64, 64, 3),
    },
    "RobertaBackbone": SHORT,
    "RoformerV2Backbone": TEXT | {"head_size": 6},
    "SigLIPTextEncoder": CLIP_TEXT,
    "SigLIPVisionEncoder": PATCHES,
    "SmolLM3Backbone": {
        "vocabulary_size": 23,
        "hidden_dim": 24,
        "intermediate_dim": 20,
        "num_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_layer_enabled_list": [True, False],
        "layer_types": ["attention", "attention"],
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 16,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    },
    "SwinTransformerBackbone": {
        "embed_dim": 12,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_size": 4,
        **IMAGE,
    },
    "T5Backbone": TEXT,
    "VGGBackbone": {
        "stackwise_num_repeats": [2, 2],
        "stackwise_num_filters": [10, 14],
        **IMAGE,
    },
    "ViTBackbone": {k: v for k, v in PATCHES.items() if k != "intermediate_dim"} | {"mlp_dim": 20},
    "ViTDetBackbone": {
        "hidden_size": 24,
        "num_layers": 2,
        "intermediate_dim": 20,
        "num_heads": 4,
        "global_attention_layer_indices": [1],
        "patch_size": 8,
        "num_output_channels": 10,
        "window_size": 2,
        **IMAGE,
    },
    "VideoPrismBackbone": {
        "num_frames": 3,
        "patch_size": 8,
        "hidden_dim": 24,
        "intermediate_dim": 20,
        "num_heads": 4,
        "num_spatial_layers": 2,
        "num_temporal_layers": 1,
        "num_auxiliary_layers": 1,
        "vocabulary_size": 23,
        "num_text_layers": 1,
        **IMAGE,
    },
    "WhisperBackbone": TEXT
    | {"num_mels": 10, "max_encoder_sequence_length": 12, "max_decoder_sequence_length": 9},
    "XLMRobertaBackbone": SHORT,
    "XLNetBackbone": TEXT,
    "XceptionBackbone": {
        "stackwise_conv_filters": [[8, 12], [12, 20], [24, 24]],
        "stackwise_pooling": [True, True, False],
        "image_shape": (64, 64, 3),
    },
    **{
        f"T5Gemma{version}Backbone": {
            "vocabulary_size": 23,
            **{
                f"{side}_{name}": value
                for side in ("encoder", "decoder")
                for name, value in {
                    "hidden_dim": 24,
                    "intermediate_dim": 20,
                    "num_layers": 2,
                    "num_attention_heads": 6,
                    "num_key_value_heads": 3,
                    "head_dim": 8,
                    "layer_types": ["full_attention", "sliding_attention"],
                }.items()
            },
            "sliding_window": 4,
            "cross_attention_hidden_size": 24,
        }
        for version in ("", "2")
    },
}


def _resnet(m: Any, **changes: Any) -> Any:
    arguments = ARGUMENTS["ResNetBackbone"] | {
        "stackwise_num_filters": [64, 12, 16, 20],
        "stackwise_num_blocks": [1, 1, 1, 1],
        "stackwise_num_strides": [1, 2, 2, 2],
        "image_shape": (None, None, 3),
    }
    return m.ResNetBackbone(**(arguments | changes))


def _basnet(m: Any) -> Any:
    encoder = _resnet(m, block_type="basic_block", input_conv_filters=[64])
    return m.BASNetBackbone(encoder, num_classes=1, projection_filters=64, image_shape=(64, 64, 3))


def _blip2(m: Any) -> Any:
    source = "src.models.blip2.blip2"
    vision = library(f"{source}_vision_encoder").BLIP2VisionEncoder(
        image_size=16,
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=16,
        intermediate_dim=18,
        use_patch_bias=True,
        use_class_token=True,
        use_mha_bias=True,
        use_mlp_bias=True,
        dropout_rate=0.0,
        layer_norm_epsilon=1e-6,
        initializer_range=0.02,
    )
    qformer = library(f"{source}_qformer").BLIP2QFormer(
        num_query_tokens=3,
        num_layers=2,
        num_heads=4,
        hidden_dim=20,
        intermediate_dim=14,
        vision_dim=16,
        cross_attention_frequency=2,
        dropout=0.0,
        layer_norm_epsilon=1e-6,
    )
    language = library(f"{source}_custom_opt").BLIP2CustomOPT(
        **TEXT,
        num_query_tokens=3,
        dropout=0.0,
        max_sequence_length=16,
        qformer_hidden_dim=20,
    )
    return m.BLIP2Backbone(vision, qformer, language)


def _clip(m: Any, kind: str) -> Any:
    vision = getattr(m, f"{kind}VisionEncoder")(**ARGUMENTS[f"{kind}VisionEncoder"])
    text = getattr(m, f"{kind}TextEncoder")(**ARGUMENTS[f"{kind}TextEncoder"])
    width = () if kind == "SigLIP" else (14,)
    return getattr(m, f"{kind}Backbone")(vision, text, *width)


def _d_fine(m: Any) -> Any:
    hgnet = m.HGNetV2Backbone(
        depths=[1, 1, 1, 1],
        embedding_size=8,
        hidden_sizes=[12, 16, 20, 28],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[
            (8, 8, 12, 1, 2, 3),
            (12, 10, 16, 1, 2, 3),
            (16, 12, 20, 1, 2, 3),
            (20, 14, 28, 1, 2, 3),
        ],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True],
        out_features=["stage3", "stage4"],
    )
    return m.DFineBackbone(
        backbone=hgnet,
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_denoising=0,
        num_labels=5,
        hidden_dim=16,
        learn_initial_query=False,
        num_queries=6,
        anchor_image_size=(64, 64),
        feat_strides=[16, 32],
        num_feature_levels=2,
        encoder_in_channels=[20, 28],
        encode_proj_layers=[1],
        num_attention_heads=4,
        encoder_ffn_dim=18,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=18,
        decoder_n_points=[3, 3],
        lqe_hidden_dim=10,
        num_lqe_layers=2,
        out_features=["stage3", "stage4"],
        image_shape=(64, 64, 3),
        seed=0,
    )


def _deep_lab(m: Any) -> Any:
    return m.DeepLabV3Backbone(
        image_encoder=_resnet(m),
        spatial_pyramid_pooling_key="P5",
        low_level_feature_key="P2",
        upsampling_size=8,
        dilation_rates=[2, 3],
        projection_filters=12,
        image_shape=(64, 64, 3),
    )


def _depth_anything(m: Any) -> Any:
    sizes = ARGUMENTS["DINOV2Backbone"] | {
        "num_register_tokens": 0,
        "num_layers": 4,
        "image_shape": (64, 64, 3),
    }
    return m.DepthAnythingBackbone(
        m.DINOV2Backbone(**sizes, apply_layernorm=True),
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_dims=[8, 12, 16, 20],
        fusion_hidden_dim=14,
        head_hidden_dim=10,
        head_in_index=-1,
        feature_keys=["stage1", "stage2", "stage3", "stage4"],
    )


def _parseq(m: Any) -> Any:
    encoder = m.ViTBackbone(**ARGUMENTS["ViTBackbone"] | {"use_class_token": False})
    return m.PARSeqBackbone(
        encoder,
        vocabulary_size=23,
        max_label_length=7,
        decoder_hidden_dim=24,
        num_decoder_layers=1,
        num_decoder_heads=4,
        decoder_mlp_dim=20,
    )


def _retina_net(m: Any) -> Any:
    return m.RetinaNetBackbone(_resnet(m), min_level=3, max_level=5, use_p5=False)


def _sam(m: Any) -> Any:
    layers = library("layers")
    return m.SAMBackbone(
        image_encoder=m.ViTDetBackbone(**ARGUMENTS["ViTDetBackbone"]),
        prompt_encoder=layers.SAMPromptEncoder(
            hidden_size=10,
            image_embedding_size=(4, 4),
            input_image_size=(32, 32),
            mask_in_channels=12,
        ),
        mask_decoder=layers.SAMMaskDecoder(
            num_layers=2,
            hidden_size=10,
            intermediate_dim=18,
            num_heads=2,
            embedding_dim=10,
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=14,
        ),
    )


def _sam3(m: Any) -> Any:
    layers = library("layers")
    sizes = {"hidden_dim": 16, "intermediate_dim": 20, "num_heads": 2}
    return m.SAM3PromptableConceptBackbone(
        vision_encoder=layers.SAM3VisionEncoder(
            image_shape=(56, 56, 3),
            patch_size=14,
            num_layers=2,
            fpn_hidden_dim=16,
            fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
            pretrain_image_shape=(28, 28, 3),
            window_size=2,
            global_attn_indexes=[1],
            **sizes,
        ),
        text_encoder=layers.SAM3TextEncoder(
            vocabulary_size=23, embedding_dim=16, num_layers=1, max_sequence_length=8, **sizes
        ),
        geometry_encoder=layers.SAM3GeometryEncoder(num_layers=1, roi_size=3, **sizes),
        detr_encoder=layers.SAM3DetrEncoder(num_layers=1, **sizes),
        detr_decoder=layers.SAM3DetrDecoder(
            image_shape=(56, 56, 3), patch_size=14, num_layers=1, num_queries=5, **sizes
        ),
        mask_decoder=layers.SAM3MaskDecoder(num_upsampling_stages=3, hidden_dim=16, num_heads=2),
    )


def _seg_former(m: Any) -> Any:
    return m.SegFormerBackbone(
        image_encoder=m.MiTBackbone(**ARGUMENTS["MiTBackbone"]), projection_filters=14
    )


def _stable_diffusion(m: Any) -> Any:
    vae = library("src.models.vae.vae_backbone").VAEBackbone(
        [32, 32, 32, 32], [1, 1, 1, 1], [32, 32, 32, 32], [1, 1, 1, 1],
        sampler_method="mode", name="vae",
    )  # fmt: skip
    return m.StableDiffusion3Backbone(
        mmdit_patch_size=2,
        mmdit_hidden_dim=16,
        mmdit_num_layers=2,
        mmdit_num_heads=2,
        mmdit_position_size=8,
        mmdit_qk_norm=None,
        mmdit_dual_attention_indices=None,
        vae=vae,
        clip_l=m.CLIPTextEncoder(20, 16, 16, 2, 2, 18, "quick_gelu", -2, name="clip_l"),
        clip_g=m.CLIPTextEncoder(20, 20, 20, 2, 2, 22, "gelu", -2, name="clip_g"),
        image_shape=(32, 32, 3),
    )


MAKERS: dict[str, Make] = {
    "BASNetBackbone": _basnet,
    "BLIP2Backbone": _blip2,
    "CLIPBackbone": lambda m: _clip(m, "CLIP"),
    "DFineBackbone": _d_fine,
    "DeepLabV3Backbone": _deep_lab,
    "DepthAnythingBackbone": _depth_anything,
    "MetaCLIP2Backbone": lambda m: _clip(m, "MetaCLIP2"),
    "PARSeqBackbone": _parseq,
    "RetinaNetBackbone": _retina_net,
    "SAM3PromptableConceptBackbone": _sam3,
    "SAMBackbone": _sam,
    "SegFormerBackbone": _seg_former,
    "SigLIPBackbone": lambda m: _clip(m, "SigLIP"),
    "StableDiffusion3Backbone": _stable_diffusion,
}
