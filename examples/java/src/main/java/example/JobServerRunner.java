package example;

import java.io.IOException;
import java.util.Iterator;
import org.apache.beam.fn.harness.ExternalWorkerService;
import org.apache.beam.model.jobmanagement.v1.JobApi.GetJobStateRequest;
import org.apache.beam.model.jobmanagement.v1.JobApi.JobMessagesRequest;
import org.apache.beam.model.jobmanagement.v1.JobApi.JobMessagesResponse;
import org.apache.beam.model.jobmanagement.v1.JobApi.JobState;
import org.apache.beam.model.jobmanagement.v1.JobApi.PrepareJobRequest;
import org.apache.beam.model.jobmanagement.v1.JobApi.RunJobRequest;
import org.apache.beam.model.jobmanagement.v1.JobServiceGrpc;
import org.apache.beam.model.jobmanagement.v1.JobServiceGrpc.JobServiceBlockingStub;
import org.apache.beam.model.pipeline.v1.RunnerApi;
import org.apache.beam.sdk.Pipeline;
import org.apache.beam.sdk.PipelineResult;
import org.apache.beam.sdk.PipelineRunner;
import org.apache.beam.sdk.fn.server.GrpcFnServer;
import org.apache.beam.sdk.metrics.MetricResults;
import org.apache.beam.sdk.options.PipelineOptions;
import org.apache.beam.sdk.options.PortablePipelineOptions;
import org.apache.beam.sdk.util.construction.PipelineOptionsTranslation;
import org.apache.beam.sdk.util.construction.PipelineTranslation;
import org.apache.beam.sdk.util.construction.SdkComponents;
import org.apache.beam.vendor.grpc.v1p69p0.io.grpc.ManagedChannel;
import org.apache.beam.vendor.grpc.v1p69p0.io.grpc.ManagedChannelBuilder;
import org.joda.time.Duration;

/** Runs a pipeline on a job server. The worker of its Java steps is this process. */
public class JobServerRunner extends PipelineRunner<PipelineResult> {
  private final PortablePipelineOptions options;

  private JobServerRunner(PortablePipelineOptions options) {
    this.options = options;
  }

  public static JobServerRunner fromOptions(PipelineOptions options) {
    return new JobServerRunner(options.as(PortablePipelineOptions.class));
  }

  @Override
  public PipelineResult run(Pipeline pipeline) {
    ManagedChannel channel =
        ManagedChannelBuilder.forTarget(options.getJobEndpoint()).usePlaintext().build();
    try (GrpcFnServer<ExternalWorkerService> worker = new ExternalWorkerService(options).start()) {
      options.setDefaultEnvironmentType("EXTERNAL");
      options.setDefaultEnvironmentConfig(worker.getApiServiceDescriptor().getUrl());
      return new Finished(submit(pipeline, JobServiceGrpc.newBlockingStub(channel)));
    } catch (Exception error) {
      throw new IllegalStateException(error);
    } finally {
      channel.shutdownNow();
    }
  }

  private JobState.Enum submit(Pipeline pipeline, JobServiceBlockingStub server) {
    RunnerApi.Pipeline.Builder proto =
        PipelineTranslation.toProto(pipeline, SdkComponents.create(options)).toBuilder();
    // The worker has the classes already, so no files are sent to it.
    proto
        .getComponentsBuilder()
        .getEnvironmentsMap()
        .forEach(
            (id, environment) ->
                proto
                    .getComponentsBuilder()
                    .putEnvironments(id, environment.toBuilder().clearDependencies().build()));
    String preparation =
        server
            .prepare(
                PrepareJobRequest.newBuilder()
                    .setJobName("predict")
                    .setPipeline(proto)
                    .setPipelineOptions(PipelineOptionsTranslation.toProto(options))
                    .build())
            .getPreparationId();
    String job =
        server.run(RunJobRequest.newBuilder().setPreparationId(preparation).build()).getJobId();
    Iterator<JobMessagesResponse> messages =
        server.getMessageStream(JobMessagesRequest.newBuilder().setJobId(job).build());
    JobState.Enum state = JobState.Enum.UNSPECIFIED;
    while (messages.hasNext()) {
      JobMessagesResponse message = messages.next();
      if (message.hasStateResponse()) {
        state = message.getStateResponse().getState();
      } else if (!message.getMessageResponse().getMessageText().isEmpty()) {
        System.err.println(message.getMessageResponse().getMessageText());
      }
    }
    return state;
  }

  private static class Finished implements PipelineResult {
    private final JobState.Enum state;

    Finished(JobState.Enum state) {
      if (state != JobState.Enum.DONE) {
        throw new IllegalStateException("The job ended with the state " + state);
      }
      this.state = state;
    }

    @Override
    public State getState() {
      return State.valueOf(state.name());
    }

    @Override
    public State cancel() throws IOException {
      return getState();
    }

    @Override
    public State waitUntilFinish(Duration duration) {
      return getState();
    }

    @Override
    public State waitUntilFinish() {
      return getState();
    }

    @Override
    public MetricResults metrics() {
      throw new UnsupportedOperationException("This runner returns no metrics.");
    }
  }
}
