"""Names that pickles in the wild, or in advisories about scanners of pickles, have called.

Collected from published advisories on picklescan, modelscan, fickling and `torch.load`, from the
lists of those scanners, and from the modules of Python, torch and NumPy.
"""

#: Functions that run a program, given a line for the shell.
SHELL = """
    os.system posix.system nt.system os.popen os.execl os.spawnl os.posix_spawn subprocess.run
    subprocess.call subprocess.check_call subprocess.check_output subprocess.getoutput
    subprocess.getstatusoutput subprocess.Popen commands.getoutput popen2.popen2 pty.spawn
    asyncio.create_subprocess_shell asyncio.unix_events._UnixSubprocessTransport
    asyncio.unix_events._UnixSubprocessTransport._start multiprocessing.util.spawnv_passfds
    pydoc.pipepager pydoc.tempfilepager webbrowser.open webbrowser.BackgroundBrowser
    platform.popen ctypes.util._findLib_gcc distutils.spawn.spawn setuptools.sandbox.run_setup
    numpy.distutils.exec_command.exec_command numpy.f2py.diagnose.run_command
    torch.utils.collect_env.run torch.utils.cpp_extension.load
    torch._inductor.codecache.compile_file pip.main pip._internal.main
    pip._internal.cli.main.main ensurepip._run_pip venv.create uuid._get_command_stdout
    IPython.core.interactiveshell.InteractiveShell.system idlelib.run.Executive
    idlelib.autocomplete.AutoComplete.get_entity _osx_support._read_output
    _osx_support._find_build_tool _aix_support._read_cmd_output _posixsubprocess.fork_exec
    os.execve os.spawnvp os.startfile os.posix_spawnp pty.fork multiprocessing.popen_fork.Popen
    multiprocessing.process.BaseProcess.start concurrent.futures.process.ProcessPoolExecutor
    asyncio.subprocess.create_subprocess_exec asyncio.base_events.BaseEventLoop.subprocess_shell
    pydoc.pager antigravity.webbrowser.open nturl2path.os.system
    test.support.script_helper.spawn_python
    torch.distributed.elastic.multiprocessing.start_processes torch.distributed.run.main
    torch.distributed.launcher.api.launch_agent torch._inductor.cpp_builder.run_compile_cmd
    torch._inductor.codecache.run_command_and_check torch._dynamo.debug_utils.run_fwd_maybe_bwd
    torch.utils._cpp_embed_headers.main torch.utils.hipify.hipify_python.hipify
    numpy.distutils.ccompiler.CCompiler_spawn numpy.distutils.command.build_src.build_src
    fabric.Connection.local invoke.run paramiko.SSHClient.exec_command psutil.Popen pytest.main
    tornado.process.Subprocess gradio.Interface.launch
""".split()  # noqa: SIM905

#: Functions that run Python, given source code, or that lead to one.
PYTHON = """
    builtins.eval builtins.exec builtins.compile builtins.__import__ builtins.open
    builtins.getattr __builtin__.eval __builtin__.execfile __builtin__.apply __builtin__.input
    builtins.breakpoint builtins.globals builtins.map builtins.filter builtins.setattr
    builtins.delattr builtins.vars builtins.help builtins.classmethod builtins.property
    builtins.super builtins.memoryview code.interact code.InteractiveInterpreter
    code.InteractiveInterpreter.runcode codeop.compile_command timeit.timeit timeit.main
    timeit.Timer cProfile.run cProfile.runctx profile.run profile.Profile.run
    profile.Profile.runctx trace.Trace.run trace.Trace.runctx bdb.Bdb.run bdb.Bdb.runeval
    pdb.run pdb.runeval doctest.debug_script doctest.debug doctest.run runpy._run_code
    runpy.run_path runpy.run_module runpy._run_module_code imp.load_source
    importlib.import_module importlib.util.spec_from_file_location importlib.reload
    importlib.machinery.SourceFileLoader pkgutil.resolve_name pkgutil.get_loader pydoc.locate
    pydoc.safeimport zipimport.zipimporter ctypes.CDLL ctypes.PyDLL ctypes.cdll.LoadLibrary
    marshal.loads types.CodeType types.FunctionType types.ModuleType types.DynamicClassAttribute
    pickle.loads pickle._loads pickle.Unpickler _pickle.loads cPickle.loads shelve.open
    copyreg.add_extension copyreg.pickle copyreg.__reduce_ex__ functools.partial
    functools.reduce operator.attrgetter operator.methodcaller operator.itemgetter operator.call
    _operator.methodcaller itertools.starmap atexit.register signal.signal threading.Thread
    sched.scheduler site.main sys.settrace sys.setprofile gc.get_objects inspect.getattr_static
    logging.config.fileConfig logging.config.listen lib2to3.pgen2.grammar.Grammar.loads
    lib2to3.pgen2.pgen.ParserGenerator linecache.updatecache warnings.catch_warnings
    string.Formatter.format ast.literal_eval idlelib.pyshell.ModifiedInterpreter
    idlelib.debugobj.ObjectTreeItem.SetText idlelib.calltip.Calltip.fetch_tip
    idlelib.calltip.get_entity xmlrpc.client.ServerProxy torch.load torch.serialization.load
    torch.storage._load_from_bytes torch.hub.load torch.hub.load_state_dict_from_url
    torch.jit.load torch.package.PackageImporter torch.jit.unsupported_tensor_ops.execWrapper
    torch.utils._config_module.ConfigModule.load_config torch.utils._config_module.load_config
    torch.utils.bottleneck.__main__.run_cprofile
    torch.utils.bottleneck.__main__.run_autograd_prof torch.fx.graph_module._forward_from_src
    torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
    torch.utils.data.datapipes.utils.decoder.basichandlers torch._dynamo.guards.GuardBuilder.get
    torch.fx.graph_module.reduce_graph_module torch.ops.load_library torch.classes.load_library
    torch.distributed.rpc.rpc_sync torch._C._jit_get_all_schemas torch.from_file torch.save
    torch.utils.model_dump.main torch._utils_internal.get_file_path torch.multiprocessing.spawn
    numpy.load numpy.fromfile numpy.memmap numpy.save numpy.testing._private.utils.runstring
    numpy.f2py.crackfortran.getlincoef numpy.f2py.crackfortran.param_eval
    numpy.f2py.crackfortran.myeval numpy.f2py.crackfortran._eval_length
    numpy.f2py.crackfortran._eval_scalar numpy.lib.npyio.NpzFile numpy.ctypeslib.load_library
    numpy.core._internal._ctypes numpy.distutils.cpuinfo.command_info pandas.read_pickle
    pandas.eval pandas.core.frame.DataFrame.query joblib.load dill.loads cloudpickle.loads
    sklearn.externals.joblib.load keras.models.load_model
    tensorflow.python.keras.engine.functional.Functional fsspec.open jinja2.Template.render
    setuptools.build_meta.prepare_metadata pkg_resources.load_entry_point
    sfumato.checkpoints.pickles.read_pickle sfumato.config.Config.from_dict
    __main__.__builtins__.eval ldm.__builtins__.eval builtins.type.__call__ builtins.str.format
    builtins.object.__reduce_ex__ builtins.object.__getattribute__ builtins.dict.__class__
    builtins.list.__init_subclass__ _codecs.decode codecs.decode codecs.getdecoder
    types.SimpleNamespace.__init__ types.MethodType types.CoroutineType types.new_class
    typing.get_type_hints.__globals__ typing.ForwardRef._evaluate.__globals__ enum.sys.modules
    collections.namedtuple collections._sys.modules collections.abc.sys.modules
    argparse._sys.modules datetime.sys.modules decimal._pydecimal uuid.os.system
    pathlib.PosixPath.write_text re._compiler.compile re.enum.sys.modules inspect.getsource
    inspect.currentframe linecache.getline linecache.lazycache unittest.mock._importer
    unittest.loader.TestLoader.loadTestsFromName ctypes.CFUNCTYPE ctypes.string_at
    _ctypes.dlopen _ctypes.call_function importlib._bootstrap._gcd_import
    importlib.metadata.EntryPoint.load importlib.resources.files runpy.os.system
    dataclasses.make_dataclass dataclasses._create_fn string.Template.substitute
    random._inst.__class__ tokenize.open optparse.Values.read_module
    optparse.Values._update_loose logging.Logger.makeRecord logging.config.DictConfigurator
    logging.config._resolve concurrent.futures.thread.ThreadPoolExecutor.submit queue.Queue
    selectors.DefaultSelector contextlib.ExitStack.callback weakref.finalize
    copyreg.dispatch_table.__setitem__ _pickle.Unpickler _pickle.load pickletools.dis
    torch.fx.graph_module.GraphModule torch.fx._lazy_graph_module._make_graph_module
    torch.serialization._load torch.serialization._get_restore_location
    torch._weights_only_unpickler.load torch._dynamo.eval_frame.optimize
    torch._inductor.compile_fx.compile_fx torch.compiler.compile torch.jit._script.script
    torch.jit.CompilationUnit torch._C.import_ir_module torch._C._import_ir_module_from_package
    torch.package._importlib._gcd_import
    torch.package.package_importer.PackageImporter.import_module
    torch.overrides.handle_torch_function torch.autograd.function.Function.apply
    torch.utils.checkpoint.checkpoint torch.testing._internal.common_utils.run_tests
    torch.onnx.utils.export torch.hub._load_local torch.hub._import_module
    torch.hub.download_url_to_file torch.distributed.rpc.internal.PythonUDF
    torch.distributed._shard.sharded_tensor.api.ShardedTensor
    torch.utils.data._utils.worker._worker_loop
    torch.utils.data.dataset.IterDataPipe.register_function torch.ops.torch_library
    torch.ops._OpNamespace torch.sys.modules torch.os.system
    torch.nn.modules.module.torch.hub.load torch.nn.functional.boolean_dispatch
    torch.optim.lr_scheduler.LambdaLR.step.__globals__ torch._utils._rebuild_wrapper_subclass
    torch._utils._rebuild_device_tensor_from_numpy torch._utils._set_obj_state
    numpy.testing.runstring numpy.testing._private.utils.rundocs numpy.lib._npyio_impl.load
    numpy.lib.utils.safe_eval numpy.core.records.fromfile numpy.genfromtxt numpy.loadtxt
    numpy.vectorize numpy.frompyfunc numpy.apply_along_axis numpy.core.multiarray.fromfile
    numpy.core._methods.os.system numpy.ma.core._mareconstruct
    numpy.f2py.crackfortran.environment scipy.io.loadmat pandas.io.pickle.read_pickle
    pandas.core.computation.eval.eval keras.saving.deserialize_keras_object
    numba.core.serialize._unpickle__CustomPickled cloudpickle.cloudpickle.subimport
    cloudpickle.cloudpickle._make_function dill._dill._create_function dill._dill._import_module
    joblib.numpy_pickle.load pip._vendor.distlib.scripts.ScriptMaker
    setuptools._vendor.jaraco.context.pushd sfumato.cli.main
    sfumato.checkpoints.atomic.write_file_atomically
""".split()  # noqa: SIM905

#: Functions that read, write, remove or fetch, given a path or address.
FILES = """
    builtins.open _io.open io.open io.FileIO _io.FileIO codecs.open os.open os.remove os.rename
    os.mkdir os.symlink os.truncate os.putenv os.chmod os.kill shutil.rmtree shutil.copyfile
    shutil.unpack_archive tarfile.open zipfile.ZipFile tempfile.NamedTemporaryFile glob.glob
    pathlib.Path.unlink pathlib.Path.write_text pathlib.os.system sqlite3.connect dbm.open
    distutils.file_util.write_file distutils.file_util.copy_file socket.create_connection
    urllib.request.urlopen urllib.request.urlretrieve http.client.HTTPConnection
    ssl.get_server_certificate ftplib.FTP smtplib.SMTP requests.get urllib3.request
    smtpd.SMTPServer telnetlib.Telnet xml.etree.ElementTree.parse mailbox.mbox fileinput.input
    logging.FileHandler cgitb.enable faulthandler.enable py_compile.compile
    compileall.compile_file os.unlink os.replace os.makedirs os.removedirs os.link os.mkfifo
    os.mknod os.environ.update os.killpg os.chown os.setuid shutil.move shutil.copytree
    shutil.make_archive pathlib.Path.touch pathlib.Path.symlink_to pathlib.Path.read_text
    zipfile.PyZipFile tarfile.TarFile.extractall gzip.open bz2.open lzma.open wave.open
    shelve.DbfilenameShelf csv.reader configparser.ConfigParser.read netrc.netrc plistlib.load
    xml.sax.parse xml.dom.minidom.parse http.server.HTTPServer socketserver.TCPServer
    socket.socket socket.getaddrinfo poplib.POP3 imaplib.IMAP4 nntplib.NNTP
    urllib.request.build_opener urllib.robotparser.RobotFileParser.read
    urllib.request.ProxyHandler ssl.SSLContext.load_cert_chain mmap.mmap syslog.syslog
    resource.setrlimit trace.CoverageResults.write_results tracemalloc.Snapshot.load
    aiohttp.request fsspec.core.open joblib.dump torch.utils.tensorboard.SummaryWriter
    torch.utils.show_pickle.main torch.serialization.save torch._C.PyTorchFileWriter
    torch._C.PyTorchFileReader torch.storage.UntypedStorage.from_file numpy.ndarray.tofile
    numpy.savetxt numpy.savez numpy.DataSource
""".split()  # noqa: SIM905

#: Functions that run or fetch things in libraries that are unknown here, as a training program's
#: own classes are. Files that name them load, with a note in place of what they name.
STRANGERS = """
    sympy.sympify sympy.parsing.sympy_parser.parse_expr networkx.read_gpickle
    mlflow.pyfunc.load_model pytorch_lightning.callbacks.lambda_function.LambdaCallback
    yaml.unsafe_load ruamel.yaml.load huggingface_hub.snapshot_download
    transformers.dynamic_module_utils.get_class_from_dynamic_module
    diffusers.utils.dynamic_modules_utils.get_cached_module_file
    twisted.internet.reactor.spawnProcess gevent.subprocess.Popen eventlet.green.os.system
    sh.bash plumbum.local pexpect.spawn ray.remote dask.compute openai.OpenAI
    ipykernel.kernelapp.launch_new_instance safetensors.safe_open
    accelerate.load_checkpoint_in_model ldm.util.instantiate_from_config my_training.Callback
    evil.payload
""".split()  # noqa: SIM905
