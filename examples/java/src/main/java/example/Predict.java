package example;

import java.util.Arrays;
import java.util.List;
import org.apache.beam.model.pipeline.v1.ExternalTransforms.ExternalConfigurationPayload;
import org.apache.beam.sdk.Pipeline;
import org.apache.beam.sdk.coders.RowCoder;
import org.apache.beam.sdk.options.PipelineOptionsFactory;
import org.apache.beam.sdk.options.PortablePipelineOptions;
import org.apache.beam.sdk.schemas.Schema;
import org.apache.beam.sdk.schemas.SchemaTranslation;
import org.apache.beam.sdk.transforms.Create;
import org.apache.beam.sdk.transforms.DoFn;
import org.apache.beam.sdk.transforms.ParDo;
import org.apache.beam.sdk.util.CoderUtils;
import org.apache.beam.sdk.util.construction.External;
import org.apache.beam.sdk.values.PCollection;
import org.apache.beam.sdk.values.Row;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.ByteString;

/**
 * Predicts with a scikit-learn model in a Java pipeline.
 *
 * <p>Arguments: the path of the model, the address of the expansion service, and the address of the job server.
 */
public class Predict {
  private static final String PYTHON_TRANSFORM = "beam:transforms:python:fully_qualified_named";

  public static void main(String[] args) throws Exception {
    PortablePipelineOptions options = PipelineOptionsFactory.as(PortablePipelineOptions.class);
    options.setRunner(JobServerRunner.class);
    options.setJobEndpoint(args[2]);
    Pipeline pipeline = Pipeline.create(options);

    Schema patient =
        Schema.builder().addInt64Field("id").addDoubleField("age").addDoubleField("bmi").build();
    List<Row> patients =
        Arrays.asList(
            Row.withSchema(patient).addValues(1L, 40.0, 21.5).build(),
            Row.withSchema(patient).addValues(2L, 65.0, 30.0).build());

    Row output = row("progress", "number");
    Row arguments =
        row(
            "model_handler_provider", "SklearnModelHandlerPandas",
            "model_uri", args[0],
            "columns", Arrays.asList("age", "bmi"),
            "keep", Arrays.asList("id"),
            "output", output);
    byte[] payload = encode(row("constructor", "runinference.RunInference.from_callable", "kwargs", arguments));

    PCollection<Row> predictions =
        pipeline
            .apply("Patients", Create.of(patients).withRowSchema(patient))
            .apply("Predict", External.<PCollection<Row>, Row>of(PYTHON_TRANSFORM, payload, args[1]));
    System.out.println(predictions.getSchema());
    predictions.apply("Print", ParDo.of(new Print()));
    pipeline.run().waitUntilFinish();
  }

  static class Print extends DoFn<Row, Void> {
    @ProcessElement
    public void process(@Element Row row) {
      System.out.printf("patient %d: %.1f%n", row.getInt64("id"), row.getDouble("progress"));
    }
  }

  /** Returns a row of names and values: strings, lists of strings, and rows. */
  private static Row row(Object... namesAndValues) {
    Schema.Builder schema = Schema.builder();
    Object[] values = new Object[namesAndValues.length / 2];
    for (int i = 0; i < values.length; i++) {
      String name = (String) namesAndValues[2 * i];
      Object value = values[i] = namesAndValues[2 * i + 1];
      if (value instanceof Row) {
        schema.addRowField(name, ((Row) value).getSchema());
      } else if (value instanceof List) {
        schema.addArrayField(name, Schema.FieldType.STRING);
      } else {
        schema.addStringField(name);
      }
    }
    return Row.withSchema(schema.build()).addValues(values).build();
  }

  private static byte[] encode(Row row) throws Exception {
    return ExternalConfigurationPayload.newBuilder()
        .setSchema(SchemaTranslation.schemaToProto(row.getSchema(), false))
        .setPayload(ByteString.copyFrom(CoderUtils.encodeToByteArray(RowCoder.of(row.getSchema()), row)))
        .build()
        .toByteArray();
  }
}
