#!/usr/bin/env python
"""Export a detector with its adjustments as one file that runs without this package.

The input is an image, float32[3, H, W] from 0 to 255, of any size, its channels in the order that
INPUT.FORMAT says (BGR), resized as INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST say. The outputs are
boxes (x1, y1, x2, y2 in pixels of the input), classes, masks (28×28 probabilities inside the box)
and scores, best first; a model without masks has three. In Python:

  import torch, torchvision
  boxes, classes, masks, scores = torch.jit.load("model.ts")(image)         # torchscript

  import onnxruntime
  session = onnxruntime.InferenceSession("model.onnx")
  boxes, classes, masks, scores = session.run(None, {"image": image})       # onnx, in NumPy

docs/export.md shows how to resize the image, and how to bring boxes and masks to its own size. The
file is written if it detects the same as the model at other sizes than the one it is traced with.

--format safetensors converts the checkpoint to a file of weights, which cannot hold a program: all
tools take it as MODEL.WEIGHTS, with the same config. Its metadata holds that config too.
"""

from tde_det import cli

EXAMPLE = (
    "export_model.py --config-file configs/lvis_cascade_tde.yaml --format onnx \\\n"
    "      --output model.onnx --sample-image street.jpg MODEL.WEIGHTS model_final.pth"
)
CHOICES = ("torchscript", "onnx", "safetensors")


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE)
    parser.add_argument("--format", choices=CHOICES, default="torchscript")
    parser.add_argument("--output", metavar="FILE", required=True, help="file to write")
    parser.add_argument(
        "--sample-image", metavar="FILE", help="for tracing and comparing (default: a drawn one)"
    )
    return cli.parse_args(parser)


@cli.exit_on_input_error
def main():
    args = parse_args()
    from tde_det.engine import Predictor, setup_tool
    from tde_det.engine.checkpoints import activation_of
    from tde_det.engine.export import check_format, export_verified
    from tde_det.engine.sample_image import read_sample, resized
    from tde_det.errors import InputError
    from tde_det.output_files import check_writable
    from tde_det.weight_files import SAFETENSORS, write_weights

    if (args.format == "safetensors") != args.output.endswith(SAFETENSORS):
        raise InputError(f"--format {args.format} does not go with --output {args.output}")
    check_format(args.format)
    check_writable(args.output)
    image = read_sample(args.sample_image)
    cfg = setup_tool(args.config_file, args.opts, ["weights"], data=False)
    if args.format == "onnx":
        cfg.MODEL.DEVICE = "cpu"
    predictor = Predictor(cfg)
    if args.format == "safetensors":
        state = predictor.model.state_dict()
        write_weights(args.output, state, cfg.dump(), activation_of(predictor.model))
        print(f"{args.output} is written; use it as MODEL.WEIGHTS, with the same config")
        return
    sample = resized(cfg, image)
    others = [resized(cfg, image, 0.75), sample.transpose(1, 2).contiguous()]
    print(export_verified(predictor.model, sample, others, args.format, args.output))
    print(f"{args.output} is written; docs/export.md shows how to use it")


if __name__ == "__main__":
    main()
