//! Stand-ins for CUDA's libraries: each function looks for the real one when it is first called, and answers "not there" where there is
//! none. Without them a binary that candle links against CUDA does not even start on a machine without a driver.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// One library of CUDA.
struct Library {
    /// As in `-l`.
    name: &'static str,
    /// The module of cudarc whose declarations list its functions.
    module: &'static str,
    /// What to look for at run time, in order.
    files: &'static [&'static str],
    /// What a function answers when there is no library: its own kind of "not initialized" or "no device".
    missing: u32,
}

const LIBRARIES: &[Library] = &[
    Library { name: "cuda", module: "driver", files: &["libcuda.so.1"], missing: 100 },
    Library { name: "cublas", module: "cublas", files: &["libcublas.so.13", "libcublas.so.12"], missing: 1 },
    Library { name: "cublasLt", module: "cublaslt", files: &["libcublasLt.so.13", "libcublasLt.so.12"], missing: 1 },
    Library { name: "curand", module: "curand", files: &["libcurand.so.10"], missing: 203 },
    Library { name: "nvrtc", module: "nvrtc", files: &["libnvrtc.so.13", "libnvrtc.so.12"], missing: 7 },
    Library { name: "nccl", module: "nccl", files: &["libnccl.so.2"], missing: 3 },
];

/// Builds them into `OUT_DIR` and puts that before the toolkit's folders on the linker's path.
pub(crate) fn build() {
    println!("cargo:rerun-if-env-changed=NEURON_CUDA_LINK");
    if env::var("NEURON_CUDA_LINK").is_ok_and(|kind| kind == "toolkit") {
        return;
    }
    let Some(cudarc) = cudarc_source() else {
        panic!("the source of cudarc is not where cargo keeps it: set NEURON_CUDA_LINK=toolkit to link CUDA's own libraries");
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("stubs");
    fs::create_dir_all(&out).expect("OUT_DIR can be written");
    for library in LIBRARIES {
        let source = cudarc.join("src").join(library.module).join("sys/mod.rs");
        let declarations = fs::read_to_string(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        library.build(&functions(&declarations), &out);
    }
    // candle asks for the runtime library by its shared name; the static one needs no file at run time.
    if let Some(runtime) = static_runtime() {
        fs::copy(&runtime, out.join("libcudart.a")).expect("OUT_DIR can be written");
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=dylib=dl");
}

/// Where cargo unpacked cudarc, whose declarations say what the libraries contain.
fn cudarc_source() -> Option<PathBuf> {
    let output =
        Command::new(env::var_os("CARGO")?).args(["metadata", "--format-version", "1", "--offline", "--features", "cuda"]).output().ok()?;
    let metadata = String::from_utf8(output.stdout).ok()?;
    let manifests = metadata.split("\"manifest_path\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let manifest = manifests.into_iter().find(|path| path.contains("cudarc-"))?;
    Path::new(manifest).parent().map(Path::to_path_buf)
}

fn static_runtime() -> Option<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let folders = homes.flat_map(|home| ["lib64", "lib", "targets/x86_64-linux/lib"].map(|folder| Path::new(&home).join(folder)));
    folders.map(|folder| folder.join("libcudart_static.a")).find(|file| file.exists())
}

/// The names that cudarc declares as `pub unsafe fn`: those are the library's own.
fn functions(declarations: &str) -> Vec<&str> {
    let mut names: Vec<&str> = declarations
        .lines()
        .filter_map(|line| line.strip_prefix("pub unsafe fn ")?.split('(').next())
        .filter(|name| ["cu", "nvrtc", "nccl", "pnccl"].iter().any(|prefix| name.starts_with(prefix)) && *name != "culib")
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Library {
    fn build(&self, functions: &[&str], out: &Path) {
        let name = self.name;
        let (c, assembly) = (out.join(format!("lazy_{name}.c")), out.join(format!("lazy_{name}_table.s")));
        fs::write(&c, self.resolver(functions)).expect("OUT_DIR can be written");
        fs::write(&assembly, self.table(functions)).expect("OUT_DIR can be written");
        let objects = [c, assembly].map(|source| {
            let object = source.with_extension("o");
            run(Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
                .args(["-O2", "-fPIC", "-c"])
                .arg(&source)
                .arg("-o")
                .arg(&object));
            object
        });
        let archive = out.join(format!("lib{name}.a"));
        let _ = fs::remove_file(&archive);
        run(Command::new(env::var_os("AR").unwrap_or_else(|| "ar".into())).arg("crs").arg(&archive).args(objects));
    }

    /// C that finds function `i` and remembers it in the table.
    fn resolver(&self, functions: &[&str]) -> String {
        let Self { name, files, missing, .. } = self;
        let quoted = |names: &[&str]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        format!(
            "#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
static const char *const files[] = {{{}}};
static const char *const functions[] = {{{}}};
extern void *lazy_{name}_table[] __attribute__((visibility(\"hidden\")));
static long missing(void) {{ return {missing}; }}
__attribute__((visibility(\"hidden\"))) void *lazy_{name}_resolve(unsigned long i) {{
    static void *library;
    for (size_t f = 0; !library && f < sizeof files / sizeof *files; f++) library = dlopen(files[f], RTLD_NOW | RTLD_GLOBAL);
    void *found = library ? dlsym(library, functions[i]) : NULL;
    return lazy_{name}_table[i] = found ? found : (void *)missing;
}}
",
            quoted(files),
            quoted(functions)
        )
    }

    /// Assembly: each function jumps through its place in the table, which at first leads to the resolver. Every register that may
    /// carry an argument survives the detour.
    fn table(&self, functions: &[&str]) -> String {
        let name = self.name;
        let integers = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax", "rbx"];
        let mut text = format!(".text\nlazy_{name}_first:\n push %rbp\n mov %rsp, %rbp\n");
        integers.iter().for_each(|register| _ = writeln!(text, " push %{register}"));
        text += " sub $128, %rsp\n";
        (0..8).for_each(|i| _ = writeln!(text, " movups %xmm{i}, {}(%rsp)", 16 * i));
        let _ = writeln!(text, " mov %r11, %rdi\n call lazy_{name}_resolve\n mov %rax, %r11");
        (0..8).for_each(|i| _ = writeln!(text, " movups {}(%rsp), %xmm{i}", 16 * i));
        text += " add $128, %rsp\n";
        integers.iter().rev().for_each(|register| _ = writeln!(text, " pop %{register}"));
        text += " pop %rbp\n jmp *%r11\n";
        for (i, function) in functions.iter().enumerate() {
            let place = 8 * i;
            let _ = writeln!(
                text,
                ".globl {function}\n.type {function}, @function\n{function}: jmp *lazy_{name}_table+{place}(%rip)\n.Lfirst{i}: mov ${i}, %r11d\n jmp lazy_{name}_first"
            );
        }
        let _ = writeln!(
            text,
            ".section .data.rel, \"aw\"\n.hidden lazy_{name}_table\n.globl lazy_{name}_table\n.balign 8\nlazy_{name}_table:"
        );
        (0..functions.len()).for_each(|i| _ = writeln!(text, " .quad .Lfirst{i}"));
        text + ".section .note.GNU-stack, \"\", @progbits\n"
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
