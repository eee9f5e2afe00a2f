"""Logs of a training, whoever wrote them, as rows of step, loss and gradient norm. Imports no torch.

``trace``: the rows of a log
``kinds``: the list of readers, which recognizes a log by its content
``log``: what a reader returns
``source``: a file, a compressed one, a folder or standard input
``columns``: which column is the step, the loss, the gradient norm
``figures``: numbers as tools spell them
``table``: CSV and TSV: Lightning, W&B, TensorBoard, Keras, ultralytics
``long_table``: CSV with a row a metric
``json_lines``: a record a line: W&B, detectron2, mm*, LLaMA-Factory
``json_document``: trainer_state.json, arrays, TensorBoard's JSON
``positions``: the step of ``[100/600]`` in a printed line
``bars``: progress bars: tqdm, Keras
``epochs``: steps that start again with each epoch
``packed``: gzip, bzip2, xz, zstd
``printed``: printed lines: nanoGPT, llm.c, Megatron, torchtitan, axolotl and others
``wrapped``: printed lines inside of the JSON of containers and structured loggers
``blocks``: printed blocks of several lines: OLMo, Composer, YAML
``wrapped``: printed lines inside of JSON: Docker, journald, structured loggers
``event_files``: event files of TensorBoard
``mlflow_files``: metric files of MLflow
``pattern``: a regular expression of the user
"""
