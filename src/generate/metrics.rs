//! Metric data points of all five kinds: templates, and stamping a template into a message of its own.
//!
//! A message holds metrics of up to four data points each; the kinds take turns, and each template starts with another kind.
//! Metrics have no identifiers of their own: what makes a message distinct is its event time.

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::summary_data_point::ValueAtQuantile;
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric, MetricsData,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar, number_data_point,
};

use super::random::Random;
use super::stamp::Stamp;
use super::vocabulary::{METHODS, ROUTES, attribute, integer, resource, scope, text};

/// Data points of one metric: one per route and method, usually few in one export.
const POINTS_PER_METRIC: usize = 4;
/// Kinds of metrics.
const KINDS: u64 = 5;
/// Cumulative points count since the process started: this long before the run.
const UPTIME_NS: u64 = 3_600_000_000_000;
/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: i32 = 2;
/// `AGGREGATION_TEMPORALITY_DELTA`.
const DELTA: i32 = 1;
/// Bounds of request durations in seconds, as semantic conventions advise.
const BOUNDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// A template of `points` data points. Times and values are placeholders.
pub fn template(random: &mut Random, points: usize) -> MetricsData {
    let first_kind = random.below(KINDS);
    let mut metrics = Vec::new();
    let mut left = points;
    while left > 0 {
        let points = left.min(POINTS_PER_METRIC);
        metrics.push(metric(random, first_kind + metrics.len() as u64, points));
        left -= points;
    }
    let scope_metrics = ScopeMetrics { scope: Some(scope("io.opentelemetry.runtime")), metrics, ..ScopeMetrics::default() };
    let resource_metrics =
        ResourceMetrics { resource: Some(resource(random)), scope_metrics: vec![scope_metrics], ..ResourceMetrics::default() };
    MetricsData { resource_metrics: vec![resource_metrics] }
}

fn metric(random: &mut Random, kind: u64, points: usize) -> Metric {
    let (name, unit, description, data) = match kind % KINDS {
        0 => ("process.memory.usage", "By", "Physical memory in use", gauge(random, points)),
        1 => ("http.server.requests", "{request}", "Requests since the process started", sum(random, points)),
        2 => ("http.server.request.duration", "s", "Duration of requests", histogram(random, points)),
        3 => ("rpc.client.duration", "ms", "Duration of outgoing calls", exponential_histogram(random, points)),
        _ => ("jvm.gc.pause", "s", "Pauses of the garbage collector", summary(random, points)),
    };
    Metric {
        name: name.to_owned(),
        description: description.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn attributes(random: &mut Random) -> Vec<KeyValue> {
    vec![
        attribute("http.request.method", text(random.pick(&METHODS))),
        attribute("http.route", text(random.pick(&ROUTES))),
        attribute("http.response.status_code", integer(200)),
    ]
}

/// One exemplar on the first point of a metric, as exporters keep few.
fn exemplars(first: bool) -> Vec<Exemplar> {
    let exemplar = || Exemplar {
        span_id: vec![0; 8],
        trace_id: vec![0; 16],
        value: Some(exemplar::Value::AsDouble(0.0)),
        ..Exemplar::default()
    };
    if first { vec![exemplar()] } else { vec![] }
}

fn number_point(random: &mut Random, value: number_data_point::Value, position: usize) -> NumberDataPoint {
    let exemplars = exemplars(position == 0);
    NumberDataPoint { attributes: attributes(random), exemplars, value: Some(value), ..NumberDataPoint::default() }
}

fn gauge(random: &mut Random, points: usize) -> Data {
    let value = number_data_point::Value::AsDouble(0.0);
    Data::Gauge(Gauge { data_points: (0..points).map(|position| number_point(random, value, position)).collect() })
}

fn sum(random: &mut Random, points: usize) -> Data {
    let value = number_data_point::Value::AsInt(0);
    let data_points = (0..points).map(|position| number_point(random, value, position)).collect();
    Data::Sum(Sum { data_points, aggregation_temporality: CUMULATIVE, is_monotonic: true })
}

fn histogram(random: &mut Random, points: usize) -> Data {
    let point = |position| HistogramDataPoint {
        attributes: attributes(random),
        bucket_counts: vec![0; BOUNDS.len() + 1],
        explicit_bounds: BOUNDS.to_vec(),
        exemplars: exemplars(position == 0),
        ..HistogramDataPoint::default()
    };
    Data::Histogram(Histogram { data_points: (0..points).map(point).collect(), aggregation_temporality: CUMULATIVE })
}

fn exponential_histogram(random: &mut Random, points: usize) -> Data {
    let point = |position| ExponentialHistogramDataPoint {
        attributes: attributes(random),
        scale: 3,
        positive: Some(Buckets { offset: -12, bucket_counts: vec![0; 16] }),
        negative: Some(Buckets::default()),
        exemplars: exemplars(position == 0),
        ..ExponentialHistogramDataPoint::default()
    };
    Data::ExponentialHistogram(ExponentialHistogram {
        data_points: (0..points).map(point).collect(),
        aggregation_temporality: DELTA,
    })
}

fn summary(random: &mut Random, points: usize) -> Data {
    let quantile = |quantile| ValueAtQuantile { quantile, value: 0.0 };
    let point = |_| SummaryDataPoint {
        attributes: attributes(random),
        quantile_values: [0.0, 0.5, 0.9, 0.99, 1.0].map(quantile).to_vec(),
        ..SummaryDataPoint::default()
    };
    Data::Summary(Summary { data_points: (0..points).map(point).collect() })
}

/// Makes `data`, a template or a message stamped before, the message of `stamp`. Allocates nothing.
pub fn stamp(data: &mut MetricsData, stamp: &Stamp) {
    let mut stamper = Stamper { stamp, random: stamp.random(), local: 0 };
    let scopes = data.resource_metrics.iter_mut().flat_map(|resource| &mut resource.scope_metrics);
    for metric in scopes.flat_map(|scope| &mut scope.metrics) {
        match &mut metric.data {
            Some(Data::Gauge(gauge)) => gauge.data_points.iter_mut().for_each(|point| stamper.number(point)),
            Some(Data::Sum(sum)) => sum.data_points.iter_mut().for_each(|point| stamper.number(point)),
            Some(Data::Histogram(histogram)) => histogram.data_points.iter_mut().for_each(|point| stamper.histogram(point)),
            Some(Data::ExponentialHistogram(histogram)) => {
                histogram.data_points.iter_mut().for_each(|point| stamper.exponential_histogram(point));
            }
            Some(Data::Summary(summary)) => summary.data_points.iter_mut().for_each(|point| stamper.summary(point)),
            None => {}
        }
    }
}

struct Stamper<'a> {
    stamp: &'a Stamp,
    random: Random,
    local: u64,
}

impl Stamper<'_> {
    /// The start and event time of the next data point.
    fn times(&mut self) -> (u64, u64) {
        let time_ns = self.stamp.time_ns(self.local);
        self.local += 1;
        (time_ns.saturating_sub(UPTIME_NS), time_ns)
    }

    /// A duration of up to some seconds, with no more digits than a timer has.
    fn seconds(&mut self) -> f64 {
        self.random.below(4_000_000) as f64 / 1e6
    }

    fn exemplars(&mut self, exemplars: &mut [Exemplar]) {
        // The point's number: `times` has already moved on.
        let local = self.local - 1;
        for exemplar in exemplars {
            exemplar.time_unix_nano = self.stamp.time_ns(local);
            exemplar.trace_id.copy_from_slice(&self.stamp.trace_id(local));
            exemplar.span_id.copy_from_slice(&self.stamp.span_id(local));
            exemplar.value = Some(exemplar::Value::AsDouble(self.seconds()));
        }
    }

    /// Fills `counts` and returns their sum.
    fn counts(&mut self, counts: &mut [u64]) -> u64 {
        for count in counts.iter_mut() {
            *count = self.random.below(200);
        }
        counts.iter().sum()
    }

    fn number(&mut self, point: &mut NumberDataPoint) {
        (point.start_time_unix_nano, point.time_unix_nano) = self.times();
        point.value = Some(match point.value {
            Some(number_data_point::Value::AsInt(_)) => number_data_point::Value::AsInt(self.random.below(1 << 30) as i64),
            _ => number_data_point::Value::AsDouble(self.random.below(1 << 34) as f64 / 16.0),
        });
        self.exemplars(&mut point.exemplars);
    }

    fn histogram(&mut self, point: &mut HistogramDataPoint) {
        (point.start_time_unix_nano, point.time_unix_nano) = self.times();
        point.count = self.counts(&mut point.bucket_counts);
        point.sum = Some(point.count as f64 / 8.0);
        point.min = Some(0.001);
        point.max = Some(5.0 + self.seconds());
        self.exemplars(&mut point.exemplars);
    }

    fn exponential_histogram(&mut self, point: &mut ExponentialHistogramDataPoint) {
        (point.start_time_unix_nano, point.time_unix_nano) = self.times();
        point.zero_count = self.random.below(5);
        let positive = point.positive.as_mut().map_or(0, |buckets| self.counts(&mut buckets.bucket_counts));
        point.count = point.zero_count + positive;
        point.sum = Some(positive as f64 / 4.0);
        self.exemplars(&mut point.exemplars);
    }

    fn summary(&mut self, point: &mut SummaryDataPoint) {
        (point.start_time_unix_nano, point.time_unix_nano) = self.times();
        point.count = 1 + self.random.below(1_000);
        point.sum = point.count as f64 / 64.0;
        let mut value = 0.0;
        for quantile in &mut point.quantile_values {
            value += self.seconds() / 16.0;
            quantile.value = value;
        }
    }
}

/// Data points in `data`.
#[cfg(test)]
pub fn count(data: &MetricsData) -> usize {
    let scopes = data.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
    let points = |metric: &Metric| match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        Some(Data::ExponentialHistogram(histogram)) => histogram.data_points.len(),
        Some(Data::Summary(summary)) => summary.data_points.len(),
        None => 0,
    };
    scopes.flat_map(|scope| &scope.metrics).map(points).sum()
}
