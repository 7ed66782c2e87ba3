// Well-known schemes, and pairs of them that are worth a look side by side.

const doubling = { growth: 2, dilation: 1 };
const five = { layers: 1, window: 5, heads: 8 };

/** Schemes by name: what differs from the usual settings (rules.js). `length` and `drawn` are of the sequence. */
export const SCHEMES = {
  two_of_three: { label: "Two layers of kernel 3", settings: { layers: 2, kernel: 3 }, drawn: 16 },
  kernel_five: { label: "A kernel of 5", settings: { mixer: "gated_conv", layers: 1, kernel: 5 }, drawn: 16 },
  window_five: { label: "A window of 5", settings: { kind: "sparse", ...five }, drawn: 16 },
  bytenet: {
    label: "ByteNet: kernel 3, dilations 1, 2, 4, 8, 16", drawn: 64,
    settings: { mixer: "bytenet", layers: 5, kernel: 3, list: "1, 2, 4, 8, 16" }, source: "arXiv 1610.10099",
  },
  wavenet: {
    label: "WaveNet: kernel 2, dilations doubled up to 512", drawn: 64, length: 4096,
    settings: { layers: 10, kernel: 2, ...doubling, again: 10 }, source: "arXiv 1609.03499",
  },
  convsamba: {
    label: "Kernel 32 × dilation to 8192, by head", drawn: 256, length: 8192,
    settings: { kind: "heads", mixer: "convsamba", layers: 6, kernel: 32, context: 8192 },
  },
  strided: {
    label: "Strided convolutions: kernel 3, stride 2", drawn: 64,
    settings: { kind: "strided", mixer: "conv", layers: 4, kernel: 3, stride: 2 },
  },
  bigbird: {
    label: "BigBird: window, global and random blocks, drawn small", drawn: 64, length: 4096,
    settings: { kind: "sparse", layers: 2, block: 4, window: 2, globals: 2, randoms: 3 }, source: "arXiv 2007.14062",
  },
  longformer: {
    label: "Longformer: a window and global tokens, drawn small", drawn: 64, length: 4096,
    settings: { kind: "sparse", layers: 4, window: 8, globals: 1 }, source: "arXiv 2004.05150",
  },
  dilated_window: {
    label: "Dilated windows", drawn: 64,
    settings: { kind: "sparse", layers: 4, window: 4, list: "1, 2, 4, 8" }, source: "arXiv 2004.05150",
  },
  mistral: {
    label: "Mistral 7B: a window of 4096, 32 layers", drawn: 32, length: 32768, width: 4096,
    settings: { kind: "sparse", layers: 32, window: 4096, heads: 32, shared: 4 }, source: "arXiv 2310.06825",
  },
  both_ways: {
    label: "Window of 3 both ways", drawn: 32,
    settings: { kind: "sparse", layers: 4, window: 3, causal: false },
  },
  full: { label: "Full attention", settings: { kind: "full", layers: 1 }, drawn: 32 },
  global: {
    label: "Global convolution", drawn: 32,
    settings: { kind: "global", mixer: "gated_global_conv", layers: 1, taps: 1024 },
  },
  lstm: { label: "LSTM: a recurrence with gates", settings: { kind: "gates", mixer: "lstm", layers: 1 }, drawn: 32 },
  mamba2: {
    label: "Mamba-2: a recurrence of a state", drawn: 32, settings: { kind: "state", mixer: "mamba2", layers: 1 },
  },
};

/** What a scheme is called in a sentence: what stands before the colon. */
export const shortName = (name) => SCHEMES[name].label.split(":")[0];

/** Pairs to begin with. */
export const PAIRS = [
  { label: "A window of 5 beside a kernel of 5", first: "window_five", second: "kernel_five" },
  { label: "Dilation and depth beside one global hop", first: "bytenet", second: "full" },
  { label: "Attention beside a convolution of all positions", first: "full", second: "global" },
  { label: "What attention keeps beside what a recurrence keeps", first: "full", second: "mamba2" },
  { label: "Window and depth beside BigBird", first: "longformer", second: "bigbird" },
];
