//! The types of the linked module.
//!
//! Each recursive group of types is written once, even if several modules declare it. So two types are
//! the same if and only if they have the same number here, and `call_indirect` works across modules.

use std::collections::HashMap;

use wasm_encoder::reencode::{Error, Reencode};
use wasm_encoder::{AbstractHeapType, Encode, HeapType, RefType, TypeSection, ValType};
use wasmparser::{CompositeInnerType, RecGroup, TypeSectionReader};

use crate::abi::FunctionType;

/// Marks a reference within the same group in a [`TypeTable`] key. No type has such a high number.
const WITHIN_GROUP: u32 = 1 << 31;

/// What the linker needs to know about a type.
struct TypeEntry {
  kind: Composite,
  supertype: Option<u32>,
}

enum Composite {
  /// With its type, if all its parameters and results are numbers.
  Function(Option<FunctionType>),
  Struct,
  Array,
}

/// The types of the linked module.
#[derive(Default)]
pub(super) struct TypeTable {
  section: TypeSection,
  entries: Vec<TypeEntry>,
  /// The first type of each group, by the group's encoding.
  groups: HashMap<Vec<u8>, u32>,
}

/// A type index that is out of range.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a type index is out of range")]
pub(super) struct UnknownType;

impl TypeTable {
  /// Adds the types of a module. Returns the number that each of them has here.
  pub fn add_module(
    &mut self,
    reader: Option<TypeSectionReader<'_>>,
  ) -> Result<Vec<u32>, Error<UnknownType>> {
    let mut numbers = Vec::new();
    for group in reader.into_iter().flatten() {
      self.add_group(group?, &mut numbers)?;
    }
    Ok(numbers)
  }

  /// The number of a plain function type: final, without a supertype, and in no recursive group.
  pub fn add_function(&mut self, function: &FunctionType) -> Result<u32, Error<UnknownType>> {
    let values = |values: &[crate::abi::ValueType]| {
      values
        .iter()
        .map(|value| ValType::from(*value))
        .collect::<Vec<_>>()
    };
    let (params, results) = (values(&function.params), values(&function.results));
    let mut key = TypeSection::new();
    key.ty().function(params.clone(), results.clone());
    let key = bytes(&key);
    if let Some(number) = self.groups.get(&key) {
      return Ok(*number);
    }
    let number = self.next()?;
    self.section.ty().function(params, results);
    self.entries.push(TypeEntry {
      kind: Composite::Function(Some(function.clone())),
      supertype: None,
    });
    self.groups.insert(key, number);
    Ok(number)
  }

  /// The type section.
  pub fn section(&self) -> &TypeSection {
    &self.section
  }

  /// The function type with this number; `None` for other types, and for functions with vectors or
  /// references.
  pub fn function(&self, number: u32) -> Option<&FunctionType> {
    match &self.entry(number)?.kind {
      Composite::Function(function) => function.as_ref(),
      _ => None,
    }
  }

  fn entry(&self, number: u32) -> Option<&TypeEntry> {
    self.entries.get(usize::try_from(number).ok()?)
  }

  fn next(&self) -> Result<u32, Error<UnknownType>> {
    u32::try_from(self.entries.len())
      .ok()
      .filter(|number| *number < WITHIN_GROUP)
      .ok_or(Error::UserError(UnknownType))
  }

  fn add_group(
    &mut self,
    group: RecGroup,
    numbers: &mut Vec<u32>,
  ) -> Result<(), Error<UnknownType>> {
    let types = group.into_types().collect::<Vec<_>>();
    let encode = |first: u32, types: Vec<wasmparser::SubType>| {
      let mut mapper = GroupMapper {
        numbers,
        first,
        length: types.len(),
      };
      types
        .into_iter()
        .map(|ty| mapper.sub_type(ty))
        .collect::<Result<Vec<_>, _>>()
    };
    let write = |section: &mut TypeSection, types: Vec<wasm_encoder::SubType>| {
      match types.as_slice() {
        // A group of one type is the same as a type outside a group.
        [ty] => section.ty().subtype(ty),
        _ => section.ty().rec(types),
      }
    };

    let mut key = TypeSection::new();
    write(&mut key, encode(WITHIN_GROUP, types.clone())?);
    let key = bytes(&key);
    let first = match self.groups.get(&key) {
      Some(first) => *first,
      None => {
        let first = self.next()?;
        let entries = types
          .iter()
          .map(|ty| {
            let mut mapper = GroupMapper {
              numbers,
              first,
              length: types.len(),
            };
            let supertype = ty
              .supertype_idx
              .map(|index| mapper.type_index_unpacked(index.unpack()));
            Ok(TypeEntry {
              kind: match &ty.composite_type.inner {
                CompositeInnerType::Func(function) => {
                  Composite::Function(FunctionType::from_wasm(function))
                }
                CompositeInnerType::Array(_) => Composite::Array,
                CompositeInnerType::Struct(_) => Composite::Struct,
                CompositeInnerType::Cont(_) => return Err(Error::UserError(UnknownType)),
              },
              supertype: supertype.transpose()?,
            })
          })
          .collect::<Result<Vec<_>, _>>()?;
        write(&mut self.section, encode(first, types.clone())?);
        self.entries.extend(entries);
        self.groups.insert(key, first);
        first
      }
    };
    numbers.extend((first..).take(types.len()));
    Ok(())
  }

  /// Whether `ty` is `of`, or is declared to be a subtype of it.
  pub fn is_subtype(&self, ty: u32, of: u32) -> bool {
    let mut next = Some(ty);
    // Terminates: a supertype is always declared earlier, and the validator limits the depth of
    // subtyping.
    while let Some(ty) = next {
      if ty == of {
        return true;
      }
      next = self
        .entry(ty)
        .and_then(|entry| entry.supertype)
        .filter(|supertype| *supertype < ty);
    }
    false
  }

  /// Whether a value of type `ty` can be used as a value of type `of`.
  pub fn is_value_subtype(&self, ty: ValType, of: ValType) -> bool {
    match (ty, of) {
      (ValType::Ref(ty), ValType::Ref(of)) => self.is_reference_subtype(ty, of),
      _ => ty == of,
    }
  }

  fn is_reference_subtype(&self, ty: RefType, of: RefType) -> bool {
    (of.nullable || !ty.nullable) && self.is_heap_subtype(ty.heap_type, of.heap_type)
  }

  fn is_heap_subtype(&self, ty: HeapType, of: HeapType) -> bool {
    use AbstractHeapType::{
      Any, Array, Eq, Exn, Extern, Func, I31, NoExn, NoExtern, NoFunc, None, Struct,
    };

    match (ty, of) {
      (HeapType::Concrete(ty), HeapType::Concrete(of)) => self.is_subtype(ty, of),
      (
        HeapType::Concrete(ty),
        HeapType::Abstract {
          shared: false,
          ty: of,
        },
      ) => match self.entry(ty).map(|entry| &entry.kind) {
        Some(Composite::Function(_)) => of == Func,
        Some(Composite::Struct) => matches!(of, Struct | Eq | Any),
        Some(Composite::Array) => matches!(of, Array | Eq | Any),
        Option::None => false,
      },
      (HeapType::Abstract { shared: false, ty }, HeapType::Concrete(of)) => {
        match self.entry(of).map(|entry| &entry.kind) {
          Some(Composite::Function(_)) => ty == NoFunc,
          Some(Composite::Struct | Composite::Array) => ty == None,
          Option::None => false,
        }
      }
      (
        HeapType::Abstract { shared, ty },
        HeapType::Abstract {
          shared: other,
          ty: of,
        },
      ) => {
        shared == other
          && (ty == of
            || match of {
              Any => matches!(ty, Eq | I31 | Struct | Array | None),
              Eq => matches!(ty, I31 | Struct | Array | None),
              I31 | Struct | Array => ty == None,
              Func => ty == NoFunc,
              Extern => ty == NoExtern,
              Exn => ty == NoExn,
              _ => false,
            })
      }
      _ => ty == of,
    }
  }
}

/// Translates the type indices within a group.
struct GroupMapper<'a> {
  /// The numbers of the types in earlier groups.
  numbers: &'a [u32],
  /// The number of the group's first type.
  first: u32,
  length: usize,
}

impl Reencode for GroupMapper<'_> {
  type Error = UnknownType;

  fn type_index(&mut self, index: u32) -> Result<u32, Error<UnknownType>> {
    let unknown = Error::UserError(UnknownType);
    let Ok(index) = usize::try_from(index) else {
      return Err(unknown);
    };
    match self.numbers.get(index) {
      Some(number) => Ok(*number),
      None if index - self.numbers.len() < self.length => {
        let number = u32::try_from(index - self.numbers.len()).ok();
        number
          .and_then(|number| self.first.checked_add(number))
          .ok_or(unknown)
      }
      None => Err(unknown),
    }
  }
}

fn bytes(section: &TypeSection) -> Vec<u8> {
  let mut bytes = Vec::new();
  section.encode(&mut bytes);
  bytes
}
