//! What somebody without the KEK can do to the file: to its bytes, and, since it is an SQLite database, to its rows.

use std::fs;
use std::path::Path;

use arbitrary::Arbitrary;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

/// Damage to bytes is done by the page's number, counted around the file.
const PAGE_BYTES: usize = 4096;
const FILE_BYTES_MAX: usize = 1 << 20;

#[derive(Arbitrary, Debug)]
pub enum Damage {
    Flip {
        page: u8,
        offset: u16,
        by: u8,
    },
    Insert {
        page: u8,
        offset: u16,
        bytes: Vec<u8>,
    },
    CopyPage {
        from: u8,
        to: u8,
    },
    SwapPages {
        one: u8,
        other: u8,
    },
    Cut {
        bytes: u32,
    },
    Append {
        bytes: Vec<u8>,
    },
    Row(RowDamage),
    /// All rows of a key.
    DeleteKey {
        key: u8,
    },
}

/// A table and a column of it, counted around.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Cell {
    table: Table,
    row: u8,
    column: u8,
}

#[derive(Arbitrary, Debug)]
pub enum RowDamage {
    /// Writes something that the column could hold.
    Set {
        cell: Cell,
        value: Plausible,
    },
    FlipBit {
        cell: Cell,
        byte: u8,
        bit: u8,
    },
    /// One column of another row.
    CopyCell {
        cell: Cell,
        from: u8,
    },
    /// Two rows trade their first column: each is where the other was.
    SwapRows {
        table: Table,
        one: u8,
        other: u8,
    },
    /// A row again, with one column changed.
    Duplicate {
        cell: Cell,
        value: Plausible,
    },
    Delete {
        table: Table,
        row: u8,
    },
    DeleteLast {
        table: Table,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Plausible {
    Number(i8),
    Word(u8),
    Null,
    Empty,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Table {
    Store,
    Kek,
    AuditKey,
    Material,
    Key,
    Version,
    Access,
    Audit,
}

const WORDS: [&str; 17] = [
    "active",
    "deactivated",
    "destroyed",
    "retiring",
    "retired",
    "fetch",
    "rotate",
    "destroy",
    "grant",
    "uid:0",
    "uid:7777",
    "symmetric",
    "passphrase",
    "done",
    "not-found",
    "disk",
    "backup",
];

impl Plausible {
    fn value(self) -> Value {
        match self {
            Self::Number(number) => Value::Integer(number.into()),
            Self::Word(word) => Value::Text(WORDS[usize::from(word) % WORDS.len()].to_owned()),
            Self::Null => Value::Null,
            Self::Empty => Value::Blob(Vec::new()),
        }
    }
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Kek => "kek",
            Self::AuditKey => "audit_key",
            Self::Material => "material",
            Self::Key => "key",
            Self::Version => "version",
            Self::Access => "access",
            Self::Audit => "audit",
        }
    }

    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Store => {
                &["singleton", "store_id", "administrator", "created", "audit_length", "audit_mac", "seal"]
            }
            Self::Kek => &["id", "state", "created", "salt", "check_value"],
            Self::AuditKey => &["epoch", "nonce", "wrapped"],
            Self::Material => &["id", "nonce", "wrapped"],
            Self::Key => &["ordinal", "id", "name", "kind", "bits", "volume", "creator", "kek", "seal"],
            Self::Version => &["key", "version", "state", "created", "material"],
            Self::Access => &["key", "principal", "operation"],
            Self::Audit => {
                &["seq", "epoch", "time", "principal", "event", "key", "version", "detail", "outcome", "mac"]
            }
        }
    }
}

impl Damage {
    /// Does it to the file, in which nothing is open, as far as it can be done.
    pub fn inflict(&self, path: &Path) {
        match self {
            Self::Row(damage) => {
                let _ = in_rows(path, |connection| damage.inflict(connection));
            }
            Self::DeleteKey { key } => {
                let _ = in_rows(path, |connection| delete_key(connection, *key));
            }
            damage => {
                let mut bytes = fs::read(path).expect("it is there");
                damage.inflict_on_bytes(&mut bytes);
                fs::write(path, bytes).expect("there is room");
            }
        }
    }

    fn inflict_on_bytes(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let page = |number: u8| {
            let start = usize::from(number).checked_rem(len / PAGE_BYTES)? * PAGE_BYTES;
            Some(start..start + PAGE_BYTES)
        };
        let place = |number: u8, offset: u16| {
            page(number).map_or(0, |page| page.start) + usize::from(offset) % PAGE_BYTES
        };
        match self {
            Self::Flip { page, offset, by } => {
                if let Some(byte) = bytes.get_mut(place(*page, *offset)) {
                    *byte ^= by;
                }
            }
            Self::Insert { page, offset, bytes: inserted } => {
                let at = place(*page, *offset);
                if let Some(old) = bytes.get_mut(at..(at + inserted.len()).min(len)) {
                    old.copy_from_slice(&inserted[..old.len()]);
                }
            }
            Self::CopyPage { from, to } => {
                if let (Some(from), Some(to)) = (page(*from), page(*to)) {
                    bytes.copy_within(from, to.start);
                }
            }
            Self::SwapPages { one, other } => {
                if let (Some(one), Some(other)) = (page(*one), page(*other)) {
                    let kept = bytes[one.clone()].to_vec();
                    bytes.copy_within(other.clone(), one.start);
                    bytes[other].copy_from_slice(&kept);
                }
            }
            Self::Cut { bytes: kept } => bytes.truncate(*kept as usize),
            Self::Append { bytes: more } if len + more.len() <= FILE_BYTES_MAX => bytes.extend(more),
            Self::Append { .. } | Self::Row(_) | Self::DeleteKey { .. } => {}
        }
    }
}

/// Runs `change` on the data base, with nothing of SQLite's in its way that an attacker could switch off.
fn in_rows(path: &Path, change: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    let connection = Connection::open(path)?;
    connection.execute_batch(
        "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; PRAGMA synchronous = OFF;",
    )?;
    change(&connection)
}

impl RowDamage {
    fn inflict(&self, connection: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Set { cell, value } => cell.update(connection, |_| value.value()),
            Self::FlipBit { cell, byte, bit } => cell.update(connection, |old| flipped(old, *byte, *bit)),
            Self::CopyCell { cell, from } => {
                let copied = Cell { row: *from, ..*cell }.load(connection)?;
                cell.update(connection, |_| copied)
            }
            Self::SwapRows { table, one, other } => swap_rows(connection, *table, [*one, *other]),
            Self::Duplicate { cell, value } => {
                let mut row = load_row(connection, cell.table, cell.row)?;
                row[usize::from(cell.column) % cell.table.columns().len()] = value.value();
                insert(connection, cell.table, row)
            }
            Self::Delete { table, row } => {
                let row = load_row(connection, *table, *row)?;
                delete(connection, *table, &row)
            }
            Self::DeleteLast { table } => {
                let last = count(connection, *table)?.saturating_sub(1);
                let row = load_row(connection, *table, u8::try_from(last).unwrap_or(u8::MAX))?;
                delete(connection, *table, &row)
            }
        }
    }
}

impl Cell {
    fn load(self, connection: &Connection) -> rusqlite::Result<Value> {
        let row = load_row(connection, self.table, self.row)?;
        Ok(row[usize::from(self.column) % row.len()].clone())
    }

    fn update(self, connection: &Connection, change: impl FnOnce(Value) -> Value) -> rusqlite::Result<()> {
        let mut row = load_row(connection, self.table, self.row)?;
        connection.execute_batch("SAVEPOINT change")?;
        delete(connection, self.table, &row)?;
        let cell = usize::from(self.column) % row.len();
        row[cell] = change(std::mem::replace(&mut row[cell], Value::Null));
        insert(connection, self.table, row)?;
        connection.execute_batch("RELEASE change")
    }
}

fn flipped(value: Value, byte: u8, bit: u8) -> Value {
    match value {
        Value::Blob(mut bytes) if !bytes.is_empty() => {
            let at = usize::from(byte) % bytes.len();
            bytes[at] ^= 1 << (bit % 8);
            Value::Blob(bytes)
        }
        Value::Integer(number) => Value::Integer(number ^ 1 << (bit % 63)),
        other => other,
    }
}

fn count(connection: &Connection, table: Table) -> rusqlite::Result<usize> {
    let sql = format!("SELECT count(*) FROM {}", table.name());
    let count: u32 = connection.query_row(&sql, [], |row| row.get(0))?;
    Ok(count as usize)
}

/// A row by its place in the order of the table's first columns.
fn load_row(connection: &Connection, table: Table, row: u8) -> rusqlite::Result<Vec<Value>> {
    let (name, columns) = (table.name(), table.columns());
    let offset = usize::from(row) % count(connection, table)?.max(1);
    let sql = format!("SELECT {0} FROM {name} ORDER BY {0} LIMIT 1 OFFSET {offset}", columns.join(", "));
    connection.query_row(&sql, [], |row| (0..columns.len()).map(|column| row.get(column)).collect())
}

fn delete(connection: &Connection, table: Table, row: &[Value]) -> rusqlite::Result<()> {
    let equal: Vec<String> = table.columns().iter().map(|column| format!("{column} IS ?")).collect();
    let sql = format!("DELETE FROM {} WHERE {}", table.name(), equal.join(" AND "));
    connection.execute(&sql, params_from_iter(row)).map(drop)
}

fn insert(connection: &Connection, table: Table, row: Vec<Value>) -> rusqlite::Result<()> {
    let places = vec!["?"; row.len()].join(", ");
    let sql = format!("INSERT INTO {} ({}) VALUES ({places})", table.name(), table.columns().join(", "));
    connection.execute(&sql, params_from_iter(row)).map(drop)
}

fn swap_rows(connection: &Connection, table: Table, rows: [u8; 2]) -> rusqlite::Result<()> {
    let [mut one, mut other] = [load_row(connection, table, rows[0])?, load_row(connection, table, rows[1])?];
    if one == other {
        return Ok(());
    }
    connection.execute_batch("SAVEPOINT change")?;
    delete(connection, table, &one)?;
    delete(connection, table, &other)?;
    std::mem::swap(&mut one[0], &mut other[0]);
    insert(connection, table, one)?;
    insert(connection, table, other)?;
    connection.execute_batch("RELEASE change")
}

fn delete_key(connection: &Connection, key: u8) -> rusqlite::Result<()> {
    let row = load_row(connection, Table::Key, key)?;
    let ordinal = &row[0];
    connection.execute_batch("SAVEPOINT change")?;
    connection.execute(
        "DELETE FROM material WHERE id IN (SELECT material FROM version WHERE key = ?)",
        [ordinal],
    )?;
    connection.execute("DELETE FROM version WHERE key = ?", [ordinal])?;
    connection.execute("DELETE FROM access WHERE key = ?", [ordinal])?;
    connection.execute("DELETE FROM key WHERE ordinal = ?", [ordinal])?;
    connection.execute_batch("RELEASE change")
}
