//! Resolves imports.
//!
//! 1. Each import gets a target: an export of another user module, a function of the kernel, a host
//!    function, or WASI. User modules come first, as in Extism.
//! 2. Targets that are imports themselves (re-exports) are followed to their end.
//! 3. The types of the ends are compared with the types of the imports.
//! 4. Each module that imports WASI is assigned the WASI functions that work on its memory.
//!
//! Nothing here recurses, and everything takes time proportional to the number of imports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use wasm_encoder::reencode::{Error, Reencode};
use wasmparser::{Import, MemoryType, TableType, TypeRef};

use super::module::{IndexTarget, Module};
use super::type_table::{TypeTable, UnknownType};
use super::{Kind, LinkError, LinkOptions, names};
use crate::abi::{self, FunctionType};
use crate::abi::{ENV, KERNEL, USER, WASI};
use crate::host::{HostFunction, UntypedFunction, Vars};

/// The user modules, followed by the kernel's. `types` contains the numbers of each module's types.
pub(super) struct Modules<'m, 'a> {
  pub modules: &'m [Module<'a>],
  pub types: &'m [Vec<u32>],
  /// The position of the main module.
  pub main: usize,
  /// The position of the kernel's module, which is the last.
  pub kernel: usize,
}

impl<'m, 'a> Modules<'m, 'a> {
  /// The user modules.
  pub fn users(&self) -> &'m [Module<'a>] {
    self.modules.get(..self.kernel).unwrap_or_default()
  }

  fn name(&self, number: usize) -> String {
    let module = self.modules.get(number);
    module.map_or_else(String::new, |module| module.name.clone())
  }

  /// The number in the type table of a module's type.
  pub fn type_number(&self, module: usize, index: u32) -> Option<u32> {
    let types = self.types.get(module)?;
    types.get(usize::try_from(index).ok()?).copied()
  }

  /// The number in the type table of a module's function type.
  pub fn function_type(&self, module: usize, function: u32) -> Option<u32> {
    let index = self.modules.get(module)?.function_type(function)?;
    self.type_number(module, index)
  }
}

/// A definition in a module: a function, table, memory, global or tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Definition {
  pub module: usize,
  /// Its number among the module's definitions of the same kind.
  pub number: usize,
}

/// What an import resolves to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolved {
  Defined(Definition),
  /// An import of the linked module.
  Import(usize),
}

/// A function that the linked module imports.
#[derive(Debug)]
pub(super) struct HostImport {
  pub module: String,
  pub name: String,
  /// The number of its type.
  pub ty: u32,
  /// Its name in backtraces.
  pub label: String,
}

/// What the imports of all modules resolve to.
pub(super) struct Resolution {
  /// By module, then by import.
  pub imports: Vec<Vec<Resolved>>,
  /// The user modules, each after the ones that it imports from if possible; the main module last.
  pub order: Vec<usize>,
  /// The imports of the linked module.
  pub host_imports: Vec<HostImport>,
  /// The host functions among these, by number.
  pub functions: BTreeMap<usize, HostFunction>,
  /// Whether any module imports from WASI.
  pub uses_wasi: bool,
  /// The memories that WASI works on. Only the first may be missing.
  pub wasi_memories: Vec<Option<Definition>>,
}

/// What an import refers to directly.
#[derive(Clone, Debug)]
enum Target {
  /// An index of another user module.
  Export {
    module: usize,
    index: u32,
  },
  /// A function that the kernel's module defines.
  Kernel(usize),
  /// A kernel function that the host defines.
  HostKernel,
  HostFunction(usize),
  Wasi,
}

/// The end of a chain of re-exports.
#[derive(Clone, Copy, Debug)]
enum End {
  Defined(Definition),
  /// An import that the host resolves: its module and position.
  Host(usize, usize),
}

/// Resolves all imports of the user modules.
pub(super) fn resolve(
  modules: &Modules<'_, '_>,
  types: &mut TypeTable,
  options: &LinkOptions<'_>,
) -> Result<Resolution, LinkError> {
  let mut resolver = Resolver::new(modules, types, options);
  let targets = resolver.targets()?;
  let functions = std::mem::take(&mut resolver.functions);
  let ends = follow(modules, &targets)?;
  check_types(modules, types, &targets, &ends)?;
  let order = link_order(modules, &targets);
  let wasi = assign_wasi(modules, &targets, &ends, &order);
  let (imports, host_imports) = number_imports(modules, &targets, &ends, &order, &wasi)?;
  Ok(Resolution {
    imports,
    order,
    host_imports,
    functions,
    uses_wasi: targets
      .iter()
      .flatten()
      .any(|target| matches!(target, Target::Wasi)),
    wasi_memories: wasi.memories,
  })
}

/// Finds the targets of imports.
struct Resolver<'m, 'a> {
  modules: &'m Modules<'m, 'a>,
  types: &'m mut TypeTable,
  by_name: HashMap<&'m str, usize>,
  wasi: bool,
  host: &'m [HostFunction],
  /// Positions in `host` by namespace and name. The last entry wins.
  host_positions: HashMap<(&'m str, &'m str), usize>,
  /// By namespace and name. The first entry wins.
  untyped: HashMap<(&'m str, &'m str), &'m UntypedFunction>,
  /// The numbers of untyped functions that have been given a type.
  typed: HashMap<(&'m str, &'m str, FunctionType), usize>,
  vars: &'m Arc<Vars>,
  /// The imported host functions, by number.
  functions: BTreeMap<usize, HostFunction>,
}

impl<'m, 'a> Resolver<'m, 'a> {
  fn new(
    modules: &'m Modules<'m, 'a>,
    types: &'m mut TypeTable,
    options: &LinkOptions<'m>,
  ) -> Self {
    let mut untyped = HashMap::new();
    for function in options.untyped {
      untyped
        .entry((function.namespace.as_str(), function.name.as_str()))
        .or_insert(function);
    }
    Self {
      modules,
      types,
      by_name: modules
        .users()
        .iter()
        .enumerate()
        .map(|(number, module)| (module.name.as_str(), number))
        .collect(),
      wasi: options.wasi,
      host: options.functions,
      host_positions: options
        .functions
        .iter()
        .enumerate()
        .map(|(position, function)| {
          let key = (function.namespace.as_str(), function.name.as_str());
          (key, position)
        })
        .collect(),
      untyped,
      typed: HashMap::new(),
      vars: options.vars,
      functions: BTreeMap::new(),
    }
  }

  /// The targets of all imports, by module. Errors are found depth first from the main module, in the order
  /// of the imports; then in the modules that it does not reach.
  fn targets(&mut self) -> Result<Vec<Vec<Target>>, LinkError> {
    let modules = self.modules;
    let mut targets = vec![Vec::new(); modules.modules.len()];
    let mut missing = Vec::new();
    let mut seen = vec![false; modules.modules.len()];
    let others = (0..modules.kernel).filter(|number| *number != modules.main);
    for root in [modules.main].into_iter().chain(others) {
      let mut path = Vec::new();
      if mark(&mut seen, root) {
        path.push(root);
      }
      while let Some(number) = path.last().copied() {
        let (Some(importer), Some(found)) = (modules.modules.get(number), targets.get_mut(number))
        else {
          break;
        };
        let Some(import) = importer.imports.get(found.len()) else {
          path.pop();
          continue;
        };
        let Some(target) = self.target(number, importer, import)? else {
          missing.push(self.missing(&path, number, import));
          // Any target will do: linking fails anyway.
          found.push(Target::Wasi);
          continue;
        };
        if let Target::Export { module: next, .. } = target
          && mark(&mut seen, next)
        {
          path.push(next);
        }
        found.push(target);
      }
    }
    match (missing.len(), missing.pop()) {
      (_, None) => Ok(targets),
      (1, Some(only)) => Err(only),
      (_, Some(last)) => {
        missing.push(last);
        Err(LinkError::MissingImports { imports: missing })
      }
    }
  }

  /// The target of an import; `None` if nothing provides it.
  fn target(
    &mut self,
    number: usize,
    importer: &Module<'_>,
    import: &Import<'_>,
  ) -> Result<Option<Target>, LinkError> {
    if let Some(target) = self.exported(importer, import)? {
      return Ok(Some(target));
    }
    let expected = match import.ty {
      TypeRef::Func(index) => self.modules.type_number(number, index),
      _ => None,
    };
    if let Some(target) = self.untyped(import, expected)? {
      return Ok(Some(target));
    }
    let found = match import.module {
      KERNEL => self.of_kernel(import.name),
      ENV => self.of_env(import.name),
      WASI if self.wasi => abi::wasi(import.name).map(|function| (Target::Wasi, function)),
      module => self.host_function(module, import.name),
    };
    let Some((target, found)) = found else {
      return Ok(None);
    };
    if !matches!(import.ty, TypeRef::Func(_)) {
      let wanted = kind_name(Kind::of_import(import.ty)).to_owned();
      return Err(wrong_type(
        importer,
        import,
        wanted,
        "a function".to_owned(),
      ));
    }
    let number = self.types.add_function(&found).map_err(internal)?;
    if expected != Some(number) {
      return Err(wrong_type(
        importer,
        import,
        describe_function(self.types, expected),
        format!("a function {found}"),
      ));
    }
    Ok(Some(target))
  }

  /// The export of another user module that the import refers to.
  fn exported(
    &self,
    importer: &Module<'_>,
    import: &Import<'_>,
  ) -> Result<Option<Target>, LinkError> {
    let Some(number) = self.by_name.get(import.module).copied() else {
      return Ok(None);
    };
    let exporter = self.modules.modules.get(number);
    let Some(export) = exporter.and_then(|exporter| exporter.export(import.name)) else {
      return Ok(None);
    };
    let (wanted, kind) = (Kind::of_import(import.ty), Kind::of_export(export.kind));
    if wanted != kind {
      return Err(wrong_type(
        importer,
        import,
        kind_name(wanted).to_owned(),
        kind_name(kind).to_owned(),
      ));
    }
    Ok(Some(Target::Export {
      module: number,
      index: export.index,
    }))
  }

  /// An untyped host function for this import. It gets the import's type, if host functions can have that
  /// type.
  ///
  /// Found under the import's namespace, or under the other of the two namespaces of host functions.
  fn untyped(
    &mut self,
    import: &Import<'_>,
    expected: Option<u32>,
  ) -> Result<Option<Target>, LinkError> {
    if self.untyped.is_empty() {
      return Ok(None);
    }
    let Some(number) = expected else {
      return Ok(None);
    };
    let function = self.types.function(number).cloned();
    let Some(function) = function.filter(|function| function.results.len() <= 1) else {
      return Ok(None);
    };
    // The host can only define functions of plain types.
    if self.types.add_function(&function).map_err(internal)? != number {
      return Ok(None);
    }
    let found = self.untyped.get(&(import.module, import.name));
    let Some(found) = found
      .or_else(|| self.untyped.get(&(abi::twin(import.module)?, import.name)))
      .copied()
    else {
      return Ok(None);
    };
    let key = (
      found.namespace.as_str(),
      found.name.as_str(),
      function.clone(),
    );
    // Numbered after the functions in `host`.
    let next = self.host.len() + self.typed.len();
    let number = *self.typed.entry(key).or_insert(next);
    if number == next {
      let function = (found.typed)(function, self.vars);
      self.functions.insert(number, function);
    }
    Ok(Some(Target::HostFunction(number)))
  }

  fn of_kernel(&mut self, name: &str) -> Option<(Target, FunctionType)> {
    let Some(function) = abi::kernel(name) else {
      return self.host_function(KERNEL, name);
    };
    let kernel = self.modules.modules.get(self.modules.kernel);
    let target = kernel
      .and_then(|kernel| {
        let index = kernel.exported(name, Kind::Function)?;
        match kernel.space(Kind::Function).target(index)? {
          IndexTarget::Defined(number) => Some(Target::Kernel(number)),
          IndexTarget::Import(_) => None,
        }
      })
      .unwrap_or(Target::HostKernel);
    Some((target, function))
  }

  /// Plugins built in 2023 import from `env`: kernel functions with the prefix `extism_`, and host functions
  /// under their own names.
  fn of_env(&mut self, name: &str) -> Option<(Target, FunctionType)> {
    if let Some(found) = self.host_function(ENV, name) {
      return Some(found);
    }
    let of_kernel = name
      .strip_prefix("extism_")
      .and_then(|name| self.of_kernel(name));
    of_kernel.or_else(|| self.host_function(USER, name))
  }

  fn host_function(&mut self, namespace: &str, name: &str) -> Option<(Target, FunctionType)> {
    let position = *self.host_positions.get(&(namespace, name))?;
    let function = self.host.get(position)?;
    self
      .functions
      .entry(position)
      .or_insert_with(|| function.clone());
    Some((Target::HostFunction(position), function.function.clone()))
  }

  fn missing(&self, path: &[usize], number: usize, import: &Import<'_>) -> LinkError {
    let ty = match import.ty {
      TypeRef::Func(index) => {
        describe_function(self.types, self.modules.type_number(number, index))
      }
      other => kind_name(Kind::of_import(other)).to_owned(),
    };
    LinkError::MissingImport {
      path: path
        .iter()
        .map(|number| self.modules.name(*number))
        .collect(),
      module: import.module.to_owned(),
      name: import.name.to_owned(),
      is: ty + &self.hint(import),
    }
  }

  fn hint(&self, import: &Import<'_>) -> String {
    if import.module == WASI && !self.wasi {
      return ": pass `useWasi: true` to give the plugin WASI".to_owned();
    }
    // The same name in another namespace: the import's namespace is misspelled or outdated.
    let host = self
      .host
      .iter()
      .map(|function| (&function.namespace, &function.name));
    let untyped = self.untyped.values();
    let untyped = untyped.map(|function| (&function.namespace, &function.name));
    let mut namespaces = host
      .chain(untyped)
      .filter(|(_, name)| *name == import.name)
      .map(|(namespace, _)| namespace.as_str())
      .collect::<BTreeSet<_>>();
    if abi::kernel(import.name).is_some() {
      namespaces.insert(KERNEL);
    }
    if self.wasi && abi::wasi(import.name).is_some() {
      namespaces.insert(WASI);
    }
    namespaces.remove(import.module);
    if let Some(namespace) = namespaces.first() {
      return format!("; did you mean \"{namespace}\" \"{}\"?", import.name);
    }
    // A similar name: the import is misspelled.
    let host = self.host.iter().map(|function| &function.name);
    let untyped = self.untyped.values().map(|function| &function.name);
    let similar = host
      .chain(untyped)
      .map(|name| (distance(import.name, name), name))
      .filter(|(distance, name)| distance * 3 <= name.chars().count())
      .min();
    match similar {
      Some((_, name)) => format!("; did you mean \"{name}\"?"),
      None => String::new(),
    }
  }
}

/// The edit distance between two names. Very large for long names, which are not compared.
fn distance(one: &str, other: &str) -> usize {
  const LONGEST: usize = 128;
  let other: Vec<_> = other.chars().collect();
  if one.len() > LONGEST || other.len() > LONGEST {
    return usize::MAX / 4;
  }
  let mut row: Vec<_> = (0..=other.len()).collect();
  for (index, character) in one.chars().enumerate() {
    let mut diagonal = index;
    let mut left = index + 1;
    for (above, expected) in row.iter_mut().skip(1).zip(&other) {
      let replaced = diagonal + usize::from(character != *expected);
      diagonal = *above;
      left = replaced.min(*above + 1).min(left + 1);
      *above = left;
    }
    if let Some(first) = row.first_mut() {
      *first = index + 1;
    }
  }
  row.last().copied().unwrap_or_default()
}

/// Sets the flag. Returns `false` if it was already set.
fn mark(flags: &mut [bool], number: usize) -> bool {
  match flags.get_mut(number) {
    Some(flag) => !std::mem::replace(flag, true),
    None => false,
  }
}

/// Follows each target to the end of its chain.
fn follow(modules: &Modules<'_, '_>, targets: &[Vec<Target>]) -> Result<Vec<Vec<End>>, LinkError> {
  let mut ends = targets
    .iter()
    .map(|targets| vec![None; targets.len()])
    .collect::<Vec<Vec<Option<End>>>>();
  let mut visited = targets
    .iter()
    .map(|targets| vec![false; targets.len()])
    .collect::<Vec<_>>();

  for (module, targets_of_module) in targets.iter().enumerate() {
    for position in 0..targets_of_module.len() {
      let mut path = Vec::new();
      let mut next = (module, position);
      let end = loop {
        let (module, position) = next;
        if let Some(end) = ends.get(module).and_then(|ends| *ends.get(position)?) {
          break end;
        }
        if !visited
          .get_mut(module)
          .is_some_and(|visited| mark(visited, position))
        {
          let start = path.iter().position(|step| *step == next).unwrap_or(0);
          let cycle = path.iter().skip(start).chain([&next]);
          return Err(LinkError::CircularLinking {
            path: cycle.map(|(module, _)| modules.name(*module)).collect(),
          });
        }
        path.push(next);
        match targets
          .get(module)
          .and_then(|targets| targets.get(position))
        {
          Some(Target::Export {
            module: exporter,
            index,
          }) => {
            let kind = modules
              .modules
              .get(module)
              .and_then(|module| module.imports.get(position))
              .map(|import| Kind::of_import(import.ty));
            let target = modules
              .modules
              .get(*exporter)
              .zip(kind)
              .and_then(|(exporter, kind)| exporter.space(kind).target(*index));
            match target {
              Some(IndexTarget::Import(position)) => next = (*exporter, position),
              Some(IndexTarget::Defined(number)) => {
                break End::Defined(Definition {
                  module: *exporter,
                  number,
                });
              }
              None => return Err(inconsistent()),
            }
          }
          Some(Target::Kernel(number)) => {
            break End::Defined(Definition {
              module: modules.kernel,
              number: *number,
            });
          }
          Some(Target::HostKernel | Target::HostFunction(_) | Target::Wasi) => {
            break End::Host(module, position);
          }
          None => return Err(inconsistent()),
        }
      };
      for (module, position) in path {
        if let Some(entry) = ends.get_mut(module).and_then(|ends| ends.get_mut(position)) {
          *entry = Some(end);
        }
      }
    }
  }
  ends
    .into_iter()
    .map(|ends| ends.into_iter().collect::<Option<Vec<_>>>())
    .collect::<Option<Vec<_>>>()
    .ok_or_else(inconsistent)
}

/// Compares the types of imports with the exports of other user modules.
fn check_types(
  modules: &Modules<'_, '_>,
  types: &TypeTable,
  targets: &[Vec<Target>],
  ends: &[Vec<End>],
) -> Result<(), LinkError> {
  let others = (0..modules.kernel).filter(|number| *number != modules.main);
  for number in [modules.main].into_iter().chain(others) {
    let (Some(importer), Some(targets), Some(ends)) = (
      modules.modules.get(number),
      targets.get(number),
      ends.get(number),
    ) else {
      return Err(inconsistent());
    };
    for ((import, target), end) in importer.imports.iter().zip(targets).zip(ends) {
      // Other targets were compared when they were found.
      if matches!(target, Target::Export { .. }) {
        check_type(modules, types, number, importer, import, *end)?;
      }
    }
  }
  Ok(())
}

fn check_type(
  modules: &Modules<'_, '_>,
  types: &TypeTable,
  number: usize,
  importer: &Module<'_>,
  import: &Import<'_>,
  end: End,
) -> Result<(), LinkError> {
  let wrong = |expected: String, found: String| wrong_type(importer, import, expected, found);
  let (exporter, definition) = match end {
    End::Defined(Definition { module, number }) => (module, Some(number)),
    End::Host(module, _) => (module, None),
  };
  let Some(exporting) = modules.modules.get(exporter) else {
    return Err(inconsistent());
  };
  let expected_mapper = &mut TypeMapper {
    modules,
    module: number,
  };
  let found_mapper = &mut TypeMapper {
    modules,
    module: exporter,
  };

  match import.ty {
    TypeRef::Func(index) | TypeRef::FuncExact(index) => {
      let expected = modules.type_number(number, index);
      let found = match end {
        End::Defined(Definition { module, number }) => exporting
          .functions
          .get(number)
          .and_then(|index| modules.type_number(module, *index)),
        End::Host(module, position) => {
          exporting
            .imports
            .get(position)
            .and_then(|import| match import.ty {
              TypeRef::Func(index) => modules.type_number(module, index),
              _ => None,
            })
        }
      };
      let (Some(expected), Some(found)) = (expected, found) else {
        return Err(inconsistent());
      };
      if !types.is_subtype(found, expected) {
        return Err(wrong(
          describe_function(types, Some(expected)),
          describe_function(types, Some(found)),
        ));
      }
    }
    TypeRef::Table(expected) => {
      let found = definition.and_then(|number| exporting.tables.get(number));
      let Some(found) = found.map(|table| table.ty) else {
        return Err(inconsistent());
      };
      let is_same_type = expected_mapper
        .ref_type(expected.element_type)
        .map_err(internal)?
        == found_mapper
          .ref_type(found.element_type)
          .map_err(internal)?;
      if !is_same_type
        || expected.table64 != found.table64
        || expected.shared != found.shared
        || !fits(
          (expected.initial, expected.maximum),
          (found.initial, found.maximum),
        )
      {
        return Err(wrong(describe_table(&expected), describe_table(&found)));
      }
    }
    TypeRef::Memory(expected) => {
      let found = definition.and_then(|number| exporting.memories.get(number));
      let Some(found) = found else {
        return Err(inconsistent());
      };
      if expected.memory64 != found.memory64
        || expected.shared != found.shared
        || expected.page_size_log2 != found.page_size_log2
        || !fits(
          (expected.initial, expected.maximum),
          (found.initial, found.maximum),
        )
      {
        return Err(wrong(describe_memory(&expected), describe_memory(found)));
      }
    }
    TypeRef::Global(expected) => {
      let found = definition.and_then(|number| exporting.globals.get(number));
      let Some(found) = found.map(|global| global.ty) else {
        return Err(inconsistent());
      };
      let expected_type = expected_mapper
        .val_type(expected.content_type)
        .map_err(internal)?;
      let found_type = found_mapper
        .val_type(found.content_type)
        .map_err(internal)?;
      let is_right = expected.mutable == found.mutable
        && expected.shared == found.shared
        && if expected.mutable {
          expected_type == found_type
        } else {
          types.is_value_subtype(found_type, expected_type)
        };
      if !is_right {
        return Err(wrong(describe_global(&expected), describe_global(&found)));
      }
    }
    TypeRef::Tag(expected) => {
      let found = definition.and_then(|number| exporting.tags.get(number));
      let Some(found) = found else {
        return Err(inconsistent());
      };
      let found = modules.type_number(exporter, found.func_type_idx);
      let expected = modules.type_number(number, expected.func_type_idx);
      if expected != found {
        return Err(wrong(
          "a tag".to_owned(),
          "a tag of another type".to_owned(),
        ));
      }
    }
  }
  Ok(())
}

/// Whether something with the limits `found` may be imported with the limits `expected`.
fn fits(expected: (u64, Option<u64>), found: (u64, Option<u64>)) -> bool {
  found.0 >= expected.0
    && match (expected.1, found.1) {
      (None, _) => true,
      (Some(expected), Some(found)) => found <= expected,
      (Some(_), None) => false,
    }
}

/// Translates the type indices of a module.
struct TypeMapper<'m, 'a> {
  modules: &'m Modules<'m, 'a>,
  module: usize,
}

impl Reencode for TypeMapper<'_, '_> {
  type Error = UnknownType;

  fn type_index(&mut self, index: u32) -> Result<u32, Error<UnknownType>> {
    let number = self.modules.type_number(self.module, index);
    number.ok_or(Error::UserError(UnknownType))
  }
}

/// Orders the modules so that each comes after the ones that it imports from; the main module last. A cycle
/// is broken at its first module that is visited.
fn link_order(modules: &Modules<'_, '_>, targets: &[Vec<Target>]) -> Vec<usize> {
  let dependencies = targets
    .iter()
    .map(|targets| {
      targets
        .iter()
        .filter_map(|target| match target {
          Target::Export { module, .. } => Some(*module),
          _ => None,
        })
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    })
    .collect::<Vec<_>>();

  let mut order = Vec::new();
  let mut seen = vec![false; modules.modules.len()];
  mark(&mut seen, modules.main);
  for root in 0..modules.kernel {
    if !mark(&mut seen, root) {
      continue;
    }
    // Each entry is a module and the number of its dependencies that have been visited.
    let mut path = vec![(root, 0)];
    while let Some((number, visited)) = path.last_mut() {
      let number = *number;
      let next = dependencies
        .get(number)
        .and_then(|dependencies| dependencies.get(*visited))
        .copied();
      *visited += 1;
      match next {
        None => {
          order.push(number);
          path.pop();
        }
        Some(next) => {
          if mark(&mut seen, next) {
            path.push((next, 0));
          }
        }
      }
    }
  }
  order.push(modules.main);
  order
}

/// Which WASI functions each module uses.
struct WasiAssignment {
  /// The number of the WASI memory, by module.
  numbers: HashMap<usize, usize>,
  memories: Vec<Option<Definition>>,
}

/// Modules that import WASI and work on the same memory share its functions. Modules without a memory use the
/// first WASI memory.
fn assign_wasi(
  modules: &Modules<'_, '_>,
  targets: &[Vec<Target>],
  ends: &[Vec<End>],
  order: &[usize],
) -> WasiAssignment {
  let mut memories: Vec<Option<Definition>> = Vec::new();
  let mut by_memory = HashMap::new();
  let mut numbers = HashMap::new();
  let others = order
    .iter()
    .copied()
    .filter(|number| *number != modules.main);
  for number in [modules.main].into_iter().chain(others) {
    let imports_wasi = targets
      .get(number)
      .is_some_and(|targets| targets.iter().any(|target| matches!(target, Target::Wasi)));
    if !imports_wasi {
      continue;
    }
    let assigned = match wasi_memory(modules, ends, number) {
      None => 0,
      Some(memory) => {
        let next = memories.len();
        let number = *by_memory.entry(memory).or_insert(next);
        if number == next {
          memories.push(Some(memory));
        }
        number
      }
    };
    numbers.insert(number, assigned);
  }
  if memories.is_empty() {
    memories.push(None);
  }
  WasiAssignment { numbers, memories }
}

/// The memory that a module's WASI calls refer to: the one exported as `memory`, else its first. WASI works
/// only on memories with 32-bit addresses.
fn wasi_memory(modules: &Modules<'_, '_>, ends: &[Vec<End>], number: usize) -> Option<Definition> {
  let module = modules.modules.get(number)?;
  let index = module
    .exported(names::MEMORY, Kind::Memory)
    .unwrap_or_default();
  let definition = match module.space(Kind::Memory).target(index)? {
    IndexTarget::Defined(defined) => Definition {
      module: number,
      number: defined,
    },
    IndexTarget::Import(position) => match ends.get(number)?.get(position)? {
      End::Defined(definition) => *definition,
      End::Host(..) => return None,
    },
  };
  let owner = modules.modules.get(definition.module)?;
  let memory = owner.memories.get(definition.number)?;
  (!memory.memory64 && !memory.shared).then_some(definition)
}

/// Numbers the imports of the linked module, and resolves each import of each module.
fn number_imports(
  modules: &Modules<'_, '_>,
  targets: &[Vec<Target>],
  ends: &[Vec<End>],
  order: &[usize],
  wasi: &WasiAssignment,
) -> Result<(Vec<Vec<Resolved>>, Vec<HostImport>), LinkError> {
  let mut host_imports = Vec::new();
  let mut known = HashMap::new();
  let mut resolved = vec![Vec::new(); modules.modules.len()];
  for number in order {
    let (Some(ends), Some(resolved)) = (ends.get(*number), resolved.get_mut(*number)) else {
      return Err(inconsistent());
    };
    for end in ends {
      let (module, position) = match end {
        End::Defined(definition) => {
          resolved.push(Resolved::Defined(*definition));
          continue;
        }
        End::Host(module, position) => (*module, *position),
      };
      let target = targets
        .get(module)
        .and_then(|targets| targets.get(position));
      let import = modules
        .modules
        .get(module)
        .and_then(|module| module.imports.get(position));
      let (Some(target), Some(import)) = (target, import) else {
        return Err(inconsistent());
      };
      let key = match target {
        Target::HostFunction(number) => (names::FUNCTION.to_owned(), number.to_string()),
        Target::HostKernel => {
          let name = import.name;
          let name = match import.module {
            ENV => name.strip_prefix("extism_").unwrap_or(name),
            _ => name,
          };
          (names::KERNEL.to_owned(), name.to_owned())
        }
        Target::Wasi => {
          let namespace = match wasi.numbers.get(&module) {
            None | Some(0) => WASI.to_owned(),
            Some(number) => names::wasi(*number),
          };
          (namespace, import.name.to_owned())
        }
        Target::Export { .. } | Target::Kernel(_) => return Err(inconsistent()),
      };
      let TypeRef::Func(ty) = import.ty else {
        return Err(inconsistent());
      };
      let ty = modules.type_number(module, ty).ok_or_else(inconsistent)?;
      let next = host_imports.len();
      let number = *known.entry(key.clone()).or_insert(next);
      if number == next {
        host_imports.push(HostImport {
          module: key.0,
          name: key.1,
          ty,
          label: format!("{}.{}", import.module, import.name),
        });
      }
      resolved.push(Resolved::Import(number));
    }
  }
  Ok((resolved, host_imports))
}

/// The error for a state that validation rules out.
pub(super) fn inconsistent() -> LinkError {
  LinkError::Internal("the linker lost track of an index".to_owned())
}

/// The error for something valid that cannot be encoded.
pub(super) fn internal<E: std::fmt::Display>(error: E) -> LinkError {
  LinkError::Internal(error.to_string())
}

fn wrong_type(
  importer: &Module<'_>,
  import: &Import<'_>,
  expected: String,
  found: String,
) -> LinkError {
  LinkError::WrongImportType {
    importer: importer.name.clone(),
    module: import.module.to_owned(),
    name: import.name.to_owned(),
    expected,
    found,
  }
}

fn kind_name(kind: Kind) -> &'static str {
  match kind {
    Kind::Function => "a function",
    Kind::Table => "a table",
    Kind::Memory => "a memory",
    Kind::Global => "a global",
    Kind::Tag => "a tag",
  }
}

fn describe_function(types: &TypeTable, number: Option<u32>) -> String {
  match number.and_then(|number| types.function(number)) {
    Some(function) => format!("a function {function}"),
    None => "a function with vectors or references".to_owned(),
  }
}

fn describe_memory(memory: &MemoryType) -> String {
  let addresses = if memory.memory64 { "64-bit " } else { "" };
  let limits = describe_limits(memory.initial, memory.maximum);
  format!("a {addresses}memory of {limits} pages")
}

fn describe_table(table: &TableType) -> String {
  let addresses = if table.table64 { "64-bit " } else { "" };
  let limits = describe_limits(table.initial, table.maximum);
  format!("a {addresses}table of {limits} {}", table.element_type)
}

fn describe_limits(minimum: u64, maximum: Option<u64>) -> String {
  match maximum {
    Some(maximum) => format!("{minimum} to {maximum}"),
    None => format!("{minimum} or more"),
  }
}

fn describe_global(global: &wasmparser::GlobalType) -> String {
  let mutable = if global.mutable {
    "mutable"
  } else {
    "constant"
  };
  format!("a {mutable} global of type {}", global.content_type)
}
