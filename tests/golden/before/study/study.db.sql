BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'before');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MINIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MAXIMIZE',1,1);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["val_loss", "samples_per_second"]');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'question','{"space": {"trainer.step_size": "CategoricalDistribution(choices=(1, 2, 4))"}, "directions": ["minimize", "maximize"], "fixed": {"seed": 0, "model._target_": "cadence.models.mlp.mlp", "model.input_shape": null, "model.outputs": null, "model.hidden": [5], "data._target_": "cadence.data.synthetic.synthetic", "data.batch_size": 4, "data.workers": 0, "data.objective._target_": "cadence.objectives.Classification", "data.samples": 96, "data.shape": [6], "data.classes": 3, "data.noise": 1.0, "data.validation_share": 0.1, "data.split_seed": 0, "device.name": "cpu", "device.precision": "fp32", "device.compile": false, "device.channels_last": false, "device.threads": null, "device.keep_memory": true, "trainer.microbatch_size": null, "trainer.allow_batch_coupling": false, "trainer.max_epochs": 1, "trainer.max_samples": null, "trainer.max_seconds": null, "trainer.clip_norm": null, "trainer.evaluate_every": null, "trainer.checkpoint_every": null, "trainer.patience": null, "trainer.max_skipped": 20, "trainer.noise_scale": false, "trainer.detect_anomaly": false, "optimizer._target_": "torch.optim.AdamW", "optimizer.lr": 0.001, "optimizer.betas": [0.9, 0.999], "optimizer.eps": 1e-08, "optimizer.weight_decay": 0.01, "optimizer.fused": null, "schedule.name": "constant", "schedule.warmup": 0, "schedule.final": 1.0, "scaling.name": "sqrt", "scaling.reference": null, "distributed.name": "none", "distributed.processes": 1, "distributed.step_sizes": null, "distributed.timeout": 600.0}}');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'trainer.step_size',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2, 4]}}');
INSERT INTO "trial_params" VALUES(2,2,'trainer.step_size',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2, 4]}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,1,'fixed_params','{"trainer.step_size": 1}');
INSERT INTO "trial_system_attributes" VALUES(2,2,'fixed_params','{"trainer.step_size": 2}');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'replicate','0');
INSERT INTO "trial_user_attributes" VALUES(2,1,'sweep','"step_size_grid"');
INSERT INTO "trial_user_attributes" VALUES(3,1,'data','"synthetic"');
INSERT INTO "trial_user_attributes" VALUES(4,1,'data.samples','"96"');
INSERT INTO "trial_user_attributes" VALUES(5,1,'data.shape','"[6]"');
INSERT INTO "trial_user_attributes" VALUES(6,1,'data.classes','"3"');
INSERT INTO "trial_user_attributes" VALUES(7,1,'data.batch_size','"4"');
INSERT INTO "trial_user_attributes" VALUES(8,1,'model','"mlp"');
INSERT INTO "trial_user_attributes" VALUES(9,1,'model.hidden','"[5]"');
INSERT INTO "trial_user_attributes" VALUES(10,1,'device.name','"cpu"');
INSERT INTO "trial_user_attributes" VALUES(11,1,'trainer.max_epochs','"1"');
INSERT INTO "trial_user_attributes" VALUES(12,1,'track','"none"');
INSERT INTO "trial_user_attributes" VALUES(13,1,'folder','"@HERE@/trials/0"');
INSERT INTO "trial_user_attributes" VALUES(14,1,'step_size','1');
INSERT INTO "trial_user_attributes" VALUES(15,1,'microbatch_size','null');
INSERT INTO "trial_user_attributes" VALUES(16,1,'updates','22');
INSERT INTO "trial_user_attributes" VALUES(17,1,'updates_skipped','0');
INSERT INTO "trial_user_attributes" VALUES(18,1,'samples','87');
INSERT INTO "trial_user_attributes" VALUES(19,1,'items','87');
INSERT INTO "trial_user_attributes" VALUES(20,1,'minibatches','22');
INSERT INTO "trial_user_attributes" VALUES(21,1,'train_loss','1.0907157728041725');
INSERT INTO "trial_user_attributes" VALUES(22,1,'val_loss','1.1212417814466689');
INSERT INTO "trial_user_attributes" VALUES(23,1,'samples_per_second','17136.45102467316');
INSERT INTO "trial_user_attributes" VALUES(24,1,'samples_per_second_p10','10742.897419753126');
INSERT INTO "trial_user_attributes" VALUES(25,1,'samples_per_second_p90','19803.75632479147');
INSERT INTO "trial_user_attributes" VALUES(26,1,'peak_memory_mib','9.08203125');
INSERT INTO "trial_user_attributes" VALUES(27,1,'seconds','1.3325819609999598');
INSERT INTO "trial_user_attributes" VALUES(28,1,'device','"cpu"');
INSERT INTO "trial_user_attributes" VALUES(29,1,'noise_scale','null');
INSERT INTO "trial_user_attributes" VALUES(30,1,'noise_scale_low','null');
INSERT INTO "trial_user_attributes" VALUES(31,1,'noise_scale_high','null');
INSERT INTO "trial_user_attributes" VALUES(32,1,'val_accuracy','0.3333333333333333');
INSERT INTO "trial_user_attributes" VALUES(33,1,'time_samples','4.0');
INSERT INTO "trial_user_attributes" VALUES(34,1,'time_data_ms','0.016168000001925975');
INSERT INTO "trial_user_attributes" VALUES(35,1,'time_compute_ms','0.12985900002604467');
INSERT INTO "trial_user_attributes" VALUES(36,1,'time_sync_ms','0.0');
INSERT INTO "trial_user_attributes" VALUES(37,1,'time_update_ms','0.0794749994383892');
INSERT INTO "trial_user_attributes" VALUES(38,1,'effective_batch','4');
INSERT INTO "trial_user_attributes" VALUES(39,1,'seed','0');
INSERT INTO "trial_user_attributes" VALUES(40,1,'processes','1');
INSERT INTO "trial_user_attributes" VALUES(41,1,'step_sizes','[1]');
INSERT INTO "trial_user_attributes" VALUES(42,1,'mlflow_run_id','null');
INSERT INTO "trial_user_attributes" VALUES(43,1,'status','"FINISHED"');
INSERT INTO "trial_user_attributes" VALUES(44,2,'replicate','0');
INSERT INTO "trial_user_attributes" VALUES(45,2,'sweep','"step_size_grid"');
INSERT INTO "trial_user_attributes" VALUES(46,2,'data','"synthetic"');
INSERT INTO "trial_user_attributes" VALUES(47,2,'data.samples','"96"');
INSERT INTO "trial_user_attributes" VALUES(48,2,'data.shape','"[6]"');
INSERT INTO "trial_user_attributes" VALUES(49,2,'data.classes','"3"');
INSERT INTO "trial_user_attributes" VALUES(50,2,'data.batch_size','"4"');
INSERT INTO "trial_user_attributes" VALUES(51,2,'model','"mlp"');
INSERT INTO "trial_user_attributes" VALUES(52,2,'model.hidden','"[5]"');
INSERT INTO "trial_user_attributes" VALUES(53,2,'device.name','"cpu"');
INSERT INTO "trial_user_attributes" VALUES(54,2,'trainer.max_epochs','"1"');
INSERT INTO "trial_user_attributes" VALUES(55,2,'track','"none"');
INSERT INTO "trial_user_attributes" VALUES(56,2,'folder','"@HERE@/trials/1"');
INSERT INTO "trial_user_attributes" VALUES(57,2,'step_size','2');
INSERT INTO "trial_user_attributes" VALUES(58,2,'microbatch_size','null');
INSERT INTO "trial_user_attributes" VALUES(59,2,'updates','11');
INSERT INTO "trial_user_attributes" VALUES(60,2,'updates_skipped','0');
INSERT INTO "trial_user_attributes" VALUES(61,2,'samples','87');
INSERT INTO "trial_user_attributes" VALUES(62,2,'items','87');
INSERT INTO "trial_user_attributes" VALUES(63,2,'minibatches','22');
INSERT INTO "trial_user_attributes" VALUES(64,2,'train_loss','1.0925724259738265');
INSERT INTO "trial_user_attributes" VALUES(65,2,'val_loss','1.1248323652479384');
INSERT INTO "trial_user_attributes" VALUES(66,2,'samples_per_second','16192.737929847457');
INSERT INTO "trial_user_attributes" VALUES(67,2,'samples_per_second_p10','1603.5335865014833');
INSERT INTO "trial_user_attributes" VALUES(68,2,'samples_per_second_p90','24309.425899367616');
INSERT INTO "trial_user_attributes" VALUES(69,2,'peak_memory_mib','0.171875');
INSERT INTO "trial_user_attributes" VALUES(70,2,'seconds','0.06663454699992144');
INSERT INTO "trial_user_attributes" VALUES(71,2,'device','"cpu"');
INSERT INTO "trial_user_attributes" VALUES(72,2,'noise_scale','null');
INSERT INTO "trial_user_attributes" VALUES(73,2,'noise_scale_low','null');
INSERT INTO "trial_user_attributes" VALUES(74,2,'noise_scale_high','null');
INSERT INTO "trial_user_attributes" VALUES(75,2,'val_accuracy','0.3333333333333333');
INSERT INTO "trial_user_attributes" VALUES(76,2,'time_samples','8.0');
INSERT INTO "trial_user_attributes" VALUES(77,2,'time_data_ms','0.01994400008697994');
INSERT INTO "trial_user_attributes" VALUES(78,2,'time_compute_ms','0.25046300015674205');
INSERT INTO "trial_user_attributes" VALUES(79,2,'time_sync_ms','0.0');
INSERT INTO "trial_user_attributes" VALUES(80,2,'time_update_ms','0.08302699961859616');
INSERT INTO "trial_user_attributes" VALUES(81,2,'effective_batch','8');
INSERT INTO "trial_user_attributes" VALUES(82,2,'seed','0');
INSERT INTO "trial_user_attributes" VALUES(83,2,'processes','1');
INSERT INTO "trial_user_attributes" VALUES(84,2,'step_sizes','[2]');
INSERT INTO "trial_user_attributes" VALUES(85,2,'mlflow_run_id','null');
INSERT INTO "trial_user_attributes" VALUES(86,2,'status','"FINISHED"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,1.12124178144666886147e+00,'FINITE');
INSERT INTO "trial_values" VALUES(2,1,1,1.71364510246731588261e+04,'FINITE');
INSERT INTO "trial_values" VALUES(3,2,0,1.12483236524793839272e+00,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,1,1.61927379298474570534e+04,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-26 21:51:55.156078','2026-11-26 22:02:48.169906');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-26 22:02:54.272014','2026-11-26 22:03:43.864036');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
