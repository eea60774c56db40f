//! `estiba history`: the steps that made an image.

use clap::Args;
use estiba_engine::Engine;

use crate::failure::Result;
use crate::format::{Column, Format};
use crate::template::{Record, Value};
use crate::view::image::Config;
use crate::view::row::Length;
use crate::{moment, output, size};

const TABLE: &str = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";

const COLUMNS: [Column; 6] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// Show the steps that made an image
#[derive(Debug, Args)]
pub(crate) struct History {
    /// table, table TEMPLATE, json, or a template for each
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Sizes and times for people [default: true]
    #[arg(short = 'H', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(value_parser = crate::flags::boolean, hide_possible_values = true)]
    human: Option<bool>,
    /// Do not shorten ids and steps
    #[arg(long)]
    no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Name or id
    #[arg(value_name = "IMAGE")]
    image: String,
}

impl History {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let (_, image) = engine.inspect_image(&self.image).await?;
        let length = Length::of(self.no_trunc);
        let human = self.human.unwrap_or(true);
        let mut sizes = image.layers().iter().rev().map(|layer| layer.descriptor.size());
        let id = image.id().to_string();
        let mut rows: Vec<Value> = Vec::new();
        let mut ids = Vec::new();
        for (index, step) in Config::read(image.raw_config()).history().into_iter().enumerate() {
            let bytes = if step.has_layer { sizes.next().unwrap_or(0) } else { 0 };
            // Only the last step made an image that is there.
            let id = if index == 0 { length.id(&id) } else { "<missing>".to_owned() };
            let made = moment::read(&step.created);
            ids.push(id.clone());
            let since = if human { made.map(moment::ago) } else { made.map(moment::rfc3339_seconds) };
            let row = Record::row("formatter.historyContext")
                .with("Comment", step.comment)
                .with("CreatedAt", made.map(moment::rfc3339_seconds).unwrap_or_default())
                .with("CreatedBy", length.cut(&step.created_by.replace('\t', " "), 45))
                .with("CreatedSince", since.unwrap_or_else(|| "N/A".to_owned()))
                .with("ID", id)
                .with("Size", if human { size::human_with(3, bytes) } else { bytes.to_string() });
            rows.push(row.into());
        }
        if self.quiet {
            return output::print(&output::lines(ids));
        }
        output::print(&Format::parse(&self.format, TABLE).print(&COLUMNS, &rows)?)
    }
}
