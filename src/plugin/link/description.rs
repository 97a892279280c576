//! The part of a linked module that the cache stores besides its code, so that a cache hit needs no linking.

use serde_json::{Value, json};

use super::{
  Callable, ExportDescription, ImportDescription, Initializer, Kind, LinkOptions, Linked,
  LinkedSnapshot, StateExports,
};
use crate::abi::{self, FunctionType, ValueType};

impl Linked {
  /// Serializes everything except the bytes.
  pub fn describe(&self) -> Vec<u8> {
    let exports = self.exports.iter();
    let imports = self.imports.iter();
    let functions = self.functions.iter();
    json!({
      "initializers": self.initializers.iter()
        .map(|initializer| json!([initializer.export, initializer.function.to_letters()]))
        .collect::<Vec<_>>(),
      "callables": self.callables.iter()
        .map(|callable| {
          let result = FunctionType::new([], callable.result);
          json!([callable.name, callable.export, result.to_letters()])
        })
        .collect::<Vec<_>>(),
      "exports": exports.map(|export| json!([export.name, export.kind.as_str()])).collect::<Vec<_>>(),
      "imports": imports
        .map(|import| json!([import.module, import.name, import.kind.as_str()]))
        .collect::<Vec<_>>(),
      "functions": functions
        .map(|(number, function)| {
          json!([number, function.namespace, function.name, function.function.to_letters()])
        })
        .collect::<Vec<_>>(),
      "wasiMemories": self.wasi_memories,
      "usesWasi": self.uses_wasi,
      "initialPages": self.initial_pages,
      "state": self.state.as_ref().map(|state| json!([state.memories, state.globals, state.sizes])),
      "snapshot": match &self.snapshot {
        LinkedSnapshot::None => json!({}),
        LinkedSnapshot::Taken { grown_pages } => json!({ "grownPages": grown_pages }),
        LinkedSnapshot::Unsupported(reason) => json!({ "unsupported": reason }),
      },
    })
    .to_string()
    .into_bytes()
  }

  /// Restores what [`describe`](Self::describe) returned, without the bytes. The options must be those
  /// that the modules were linked with, except for the behaviour of their functions. `None` if
  /// `description` is malformed.
  pub fn from_description(description: &[u8], options: &LinkOptions<'_>) -> Option<Self> {
    let description: Value = serde_json::from_slice(description).ok()?;
    let list = |name: &str| description.get(name)?.as_array();
    Some(Self {
      bytes: Vec::new(),
      initializers: list("initializers")?
        .iter()
        .map(|initializer| {
          Some(Initializer {
            export: text(initializer, 0)?,
            function: FunctionType::from_letters(&text(initializer, 1)?),
          })
        })
        .collect::<Option<_>>()?,
      callables: list("callables")?
        .iter()
        .map(|callable| {
          let result = FunctionType::from_letters(&text(callable, 2)?);
          Some(Callable {
            name: text(callable, 0)?,
            export: text(callable, 1)?,
            result: result.results.first().copied(),
          })
        })
        .collect::<Option<_>>()?,
      exports: list("exports")?
        .iter()
        .map(|export| {
          Some(ExportDescription {
            name: text(export, 0)?,
            kind: Kind::from_name(&text(export, 1)?)?,
          })
        })
        .collect::<Option<_>>()?,
      imports: list("imports")?
        .iter()
        .map(|import| {
          Some(ImportDescription {
            module: text(import, 0)?,
            name: text(import, 1)?,
            kind: Kind::from_name(&text(import, 2)?)?,
          })
        })
        .collect::<Option<_>>()?,
      functions: list("functions")?
        .iter()
        .map(|function| {
          let number = usize::try_from(function.get(0)?.as_u64()?).ok()?;
          let known = options.functions.get(number).cloned();
          let found = match known {
            Some(known) => known,
            None => {
              let (namespace, name) = (text(function, 1)?, text(function, 2)?);
              let is_it = |untyped: &&crate::host::UntypedFunction| {
                // If two functions have one name, in a namespace and in its twin, the cache key contains both.
                let is_twin = abi::twin(&namespace) == Some(untyped.namespace.as_str());
                (untyped.namespace == namespace || is_twin) && untyped.name == name
              };
              let untyped = options.untyped.iter().find(is_it)?;
              let ty = FunctionType::from_letters(&text(function, 3)?);
              (untyped.typed)(ty, options.vars)
            }
          };
          Some((number, found))
        })
        .collect::<Option<_>>()?,
      wasi_memories: usize::try_from(description.get("wasiMemories")?.as_u64()?).ok()?,
      uses_wasi: description.get("usesWasi")?.as_bool()?,
      initial_pages: description.get("initialPages")?.as_u64()?,
      state: match description.get("state")? {
        Value::Null => None,
        state => Some(StateExports {
          memories: u32::try_from(state.get(0)?.as_u64()?).ok()?,
          globals: numbers(state, 1)?,
          sizes: numbers(state, 2)?,
        }),
      },
      snapshot: {
        let snapshot = description.get("snapshot")?;
        let grown_pages = snapshot.get("grownPages").and_then(Value::as_u64);
        let reason = snapshot.get("unsupported").and_then(Value::as_str);
        match (grown_pages, reason) {
          (Some(grown_pages), _) => LinkedSnapshot::Taken { grown_pages },
          (None, Some(reason)) => LinkedSnapshot::Unsupported(reason.to_owned()),
          (None, None) => LinkedSnapshot::None,
        }
      },
    })
  }
}

/// The list of numbers at a position of a list.
fn numbers(list: &Value, position: usize) -> Option<Vec<u32>> {
  let numbers = list.get(position)?.as_array()?.iter();
  numbers
    .map(|number| u32::try_from(number.as_u64()?).ok())
    .collect()
}

/// The string at a position of a list.
fn text(list: &Value, position: usize) -> Option<String> {
  Some(list.get(position)?.as_str()?.to_owned())
}

impl Kind {
  /// The kind with this name in JavaScript.
  fn from_name(name: &str) -> Option<Self> {
    let kinds = [
      Self::Function,
      Self::Table,
      Self::Memory,
      Self::Global,
      Self::Tag,
    ];
    kinds.into_iter().find(|kind| kind.as_str() == name)
  }
}

impl FunctionType {
  /// The inverse of [`from_letters`](Self::from_letters).
  fn to_letters(&self) -> String {
    let letters = |types: &[ValueType]| -> String {
      let letter = |ty: &ValueType| match ty {
        ValueType::I32 => 'i',
        ValueType::I64 => 'l',
        ValueType::F32 => 'f',
        ValueType::F64 => 'd',
      };
      types.iter().map(letter).collect()
    };
    format!("{}:{}", letters(&self.params), letters(&self.results))
  }
}
