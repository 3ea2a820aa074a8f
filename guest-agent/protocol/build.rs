//! Generates messages, client and server stubs from `protos/` in pure Rust (no `protoc` needed).
//!
//! The serde attributes put on the generated types make up the JSON form that agent policies see:
//! Rust field names (`type_`, `OCI`), enumerations as numbers, absent messages as `null`, unknown fields left out.

use std::path::Path;
use std::{env, fs, io};

use protobuf_codegen::{Customize, CustomizeCallback};

const PROTOS: [&str; 5] = ["protos/agent.proto", "protos/csi.proto", "protos/health.proto", "protos/oci.proto", "protos/types.proto"];

/// Modules in the order they are listed in the generated `mod.rs`.
const MODULES: [&str; 7] = ["agent", "agent_ttrpc", "csi", "health", "health_ttrpc", "oci", "types"];

struct JsonForm;

const DERIVE: &str = "#[derive(::serde::Serialize, ::serde::Deserialize)]";

impl CustomizeCallback for JsonForm {
    fn message(&self, _: &protobuf::reflect::MessageDescriptor) -> Customize {
        Customize::default().before(&format!("{DERIVE}\n#[serde(default)]"))
    }

    fn enumeration(&self, _: &protobuf::reflect::EnumDescriptor) -> Customize {
        Customize::default().before(DERIVE)
    }

    fn oneof(&self, _: &protobuf::reflect::OneofDescriptor) -> Customize {
        Customize::default().before(DERIVE)
    }

    fn field(&self, field: &protobuf::reflect::FieldDescriptor) -> Customize {
        use protobuf::descriptor::field_descriptor_proto::Type;
        let with = if field.proto().type_() == Type::TYPE_ENUM {
            "crate::json::enumeration"
        } else if field.proto().type_() == Type::TYPE_MESSAGE && field.is_singular() {
            "crate::json::message"
        } else {
            return Customize::default();
        };
        Customize::default().before(&format!("#[serde(with = \"{with}\")]"))
    }

    fn special_field(&self, _: &protobuf::reflect::MessageDescriptor, _: &str) -> Customize {
        Customize::default().before("#[serde(skip)]")
    }
}

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=protos");
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(PROTOS)
        .include("protos")
        .rust_protobuf()
        .rust_protobuf_customize(
            Customize::default()
                // No reflection in the guest: smaller code, and nothing here needs it.
                .lite_runtime(true)
                .gen_mod_rs(false)
                // Maps in key order, so that the JSON form of a request is always the same text.
                .btreemaps(true),
        )
        .rust_protobuf_customize_callback(JsonForm)
        .customize(ttrpc_codegen::Customize { async_all: true, gen_mod: false, ..Default::default() })
        .run()?;
    let modules: String = MODULES.iter().map(|name| format!("pub mod {name};\n")).collect();
    fs::write(Path::new(&out).join("mod.rs"), modules)
}
