//! The key `graph`: a shipped graph by its name, or one wired stage by stage.

use openwit_graphs::registry::{self, Operator};
use openwit_graphs::shipped;
use openwit_graphs::wiring::{self, Description, Stage};
use openwit_operators::options::{self, Declared, Options};
use openwit_operators::{dedup_window, kafka_source};

use super::Config;
use super::key::{Key, Value};
use super::layers::default_of;
use super::rule;
use super::table::{Field, Item, Table};
use super::yaml;

/// What a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Graph {
    /// Both others in one process, joined by Flight over loopback.
    Standalone,
    /// Kafka to Flight.
    Ingest,
    /// Flight to Parquet and catalog.
    Storage,
    /// Stages of one's own.
    Stages(Description),
}

impl Graph {
    /// The names of the shipped graphs.
    pub const NAMES: &'static [&'static str] = &["standalone", "ingest", "storage"];

    /// Its name, as problems tell it.
    pub fn name(&self) -> &'static str {
        match self {
            Graph::Standalone => "standalone",
            Graph::Ingest => "ingest",
            Graph::Storage => "storage",
            Graph::Stages(_) => "of stages",
        }
    }
}

impl Field for Graph {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Graph(stages) => Some(Graph::Stages(stages.clone())),
            Value::Text(name) => match name.as_str() {
                "standalone" => Some(Graph::Standalone),
                "ingest" => Some(Graph::Ingest),
                "storage" => Some(Graph::Storage),
                _ => None,
            },
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Graph::Stages(stages) => Value::Graph(stages.clone()),
            shipped => Value::Text(shipped.name().to_owned()),
        }
    }
}

impl Config {
    /// The graph that this process runs.
    pub fn description(&self) -> Description {
        match &self.graph {
            Graph::Standalone => shipped::standalone(self.processing.dedup_enabled),
            Graph::Ingest => shipped::ingest(self.processing.dedup_enabled),
            Graph::Storage => shipped::storage(),
            Graph::Stages(stages) => stages.clone(),
        }
    }

    /// A stage of the graph has this operator.
    pub fn has_operator(&self, name: &str) -> bool {
        match &self.graph {
            Graph::Stages(stages) => stages.stages.iter().any(|stage| stage.operator == name),
            Graph::Storage => false,
            Graph::Standalone | Graph::Ingest if name == dedup_window::NAME => self.processing.dedup_enabled,
            Graph::Standalone | Graph::Ingest => shipped::ingest(true).stages.iter().any(|stage| stage.operator == name),
        }
    }

    /// This process reads a source.
    pub fn has_source(&self) -> bool {
        match &self.graph {
            Graph::Stages(stages) => !stages.stages.is_empty(),
            Graph::Standalone | Graph::Ingest => true,
            Graph::Storage => false,
        }
    }

    /// This process reads Kafka.
    pub fn has_ingest(&self) -> bool {
        self.has_operator(kafka_source::NAME)
    }

    /// This process writes files and registers them.
    pub fn has_storage(&self) -> bool {
        match &self.graph {
            Graph::Stages(stages) => stages.storage,
            Graph::Standalone | Graph::Storage => true,
            Graph::Ingest => false,
        }
    }
}

/// The keys of a stage, but for the options of its operator.
pub(super) fn stage_table() -> Table {
    let mut table = Table::default();
    let mut add = |name: &str, meaning: &'static str, key: Key| table.add(name.to_owned(), Item::Key(Key { meaning, ..key }));
    add("operator", "What it does; `openwit-ingest graph --operators` lists all.", Key::text("null", rule::NAME));
    add("name", "Its name, unique in the graph; that of its operator by default.", Key::text("null", rule::STAGE).or_null());
    add(
        "from",
        "Where its input comes from: `stage` or `stage.output`; from the nearest stage above that has an output by default.",
        Key::list("[]", rule::OUTPUT),
    );
    add("accept_loss", "Offsets may be committed though this stage may lose what they stand for.", Key::bool("false"));
    table
}

/// The options of an operator.
pub(super) fn options_table(operator: &Operator) -> Table {
    let mut table = Table::default();
    for declared in operator.options {
        table.add(declared.name.to_owned(), Item::Key(key_of(declared)));
    }
    table
}

/// The options of an operator as they are where none is given; those that must be given are left out.
pub fn default_options(operator: &str) -> Options {
    let table = registry::find(operator).map(options_table).unwrap_or_default();
    let value = |key: &Key| default_of(key).ok().as_ref().and_then(option_of);
    table.keys().filter_map(|(name, key)| Some((name.to_owned(), value(key)?))).collect()
}

fn key_of(declared: &Declared) -> Key {
    let default = declared.default.unwrap_or("null");
    let key = match declared.kind {
        options::Kind::Bool => Key::bool(default),
        options::Kind::Number(min, max, unit) => Key::number(default, min, max, unit),
        options::Kind::Bytes(min, max) => Key::bytes(default, min, max),
        options::Kind::Text => Key::text(default, if declared.default == Some("") { rule::ANY } else { rule::TEXT }),
        options::Kind::Choice(names) => Key::choice(default, names),
        options::Kind::List => Key::list(default, rule::TEXT),
        options::Kind::Path => Key::path(default),
    };
    Key { meaning: declared.meaning, ..key }
}

/// An option as its operator takes it.
pub(super) fn option_of(value: &Value) -> Option<options::Value> {
    Some(match value {
        Value::Bool(value) => options::Value::Bool(*value),
        Value::Number(value) => options::Value::Number(*value),
        Value::Text(value) => options::Value::Text(value.clone()),
        Value::List(value) => options::Value::List(value.clone()),
        Value::Path(value) => options::Value::Path(value.clone()),
        _ => return None,
    })
}

/// A graph as YAML that would load as the same one, behind the colon of its key.
pub(super) fn to_yaml(description: &Description) -> String {
    let mut text = format!("\n  storage: {}\n  stages:", description.storage);
    for Stage { name, operator, from, accept_loss, options } in &description.stages {
        text.push_str(&format!("\n  - operator: {operator}\n    name: {}", scalar(name)));
        if !from.is_empty() {
            text.push_str(&format!("\n    from: {}", list(from)));
        }
        if *accept_loss {
            text.push_str("\n    accept_loss: true");
        }
        for (position, (name, value)) in options.iter().enumerate() {
            let value = match value {
                options::Value::Bool(value) => value.to_string(),
                options::Value::Number(value) => value.to_string(),
                options::Value::Text(value) => scalar(value),
                options::Value::List(values) => list(values),
                options::Value::Path(value) => scalar(&value.to_string_lossy()),
            };
            text.push_str(if position == 0 { "\n    options:" } else { "" });
            text.push_str(&format!("\n      {name}: {value}"));
        }
    }
    text
}

fn list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| scalar(text)).collect::<Vec<_>>().join(", "))
}

fn scalar(text: &str) -> String {
    yaml::scalar(&text.replace("${", "$${"))
}

/// The operator of a stage, where there is such.
pub(super) fn operator(stage: &Stage) -> Option<&'static Operator> {
    registry::find(&stage.operator)
}

/// The key of a stage's part.
pub(super) fn part(part: wiring::Part) -> &'static str {
    match part {
        wiring::Part::Name => "name",
        wiring::Part::Operator => "operator",
        wiring::Part::From => "from",
        wiring::Part::AcceptLoss => "accept_loss",
    }
}
